"""Stacks as files that other engines open: written, opened anew in the plain libraries, and compared with the Stack.

::

                    ┌▶ merged            one transformers folder
    base + clinical ├▶ fused             base │ one LoRA of rank r1 + r2, with its head
       + task + head├▶ clinical-merged   base + clinical │ task's LoRA with its head (one for each of several stacks)
                    ├▶ peft              base │ clinical │ task with its head
                    └▶ gguf              one file for llama.cpp, of instruction stacks
"""
