"""The arrays that annotations speak of.

Dimension letters, everywhere: b batch slots, k branches, t tokens of a text, c tokens of a chunk,
s ring slots, n key-value heads, g query groups, h head dimension, d width, f hidden, v vocabulary,
L layers.
"""

import jax
import numpy as np

# In a program or on devices, on the host, or only described (for compilation without data).
Array = jax.Array | np.ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo
