"""What a recipe needs before anything is loaded: trainable parameters, and memory by part.

``architectures`` finds a base's configuration, ``parameters`` builds its stack without memory, ``activations`` lets it
take training steps without memory and counts what they would hold, ``memory`` puts the parts together, ``devices`` says
where that fits.
"""
