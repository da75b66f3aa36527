"""lse comes from `flash_attention`: few, large tiles for it here too."""

from tests.kernels.attention.conftest import large_tiles, table_tiles  # noqa: F401 (fixtures)
