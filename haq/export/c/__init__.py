"""C99 for microcontrollers: an integer model as sources that need no library.

In: an `IntegerModel`. Out: a folder with `model.c`, its runtime, test vectors and a Makefile.
"""
