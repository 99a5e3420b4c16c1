from torch.ao.nn import intrinsic as intrinsic
from torch.ao.nn import qat as qat
