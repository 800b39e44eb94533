"""How good a Stack is, and how sure that is: ranking metrics and perplexity with intervals over patients."""
