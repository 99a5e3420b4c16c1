from torch.ao import nn as nn
from torch.ao import quantization as quantization
