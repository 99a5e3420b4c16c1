from torch.nn.utils import parametrize as parametrize
