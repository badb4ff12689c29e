"""dapedu: the losses, worlds and experiments of the book *Direct Alignment from Preferences*.

Import the module you need (`from dapedu import losses`); importing the package alone loads nothing heavy.
"""

__version__ = "0.7.0"
