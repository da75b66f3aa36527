/* The simulated GPU's tensor map: what cuTensorMapEncodeTiled writes into the 128 bytes that are opaque on a real GPU, and
   the driver's rules for it. C, so that the fake libcuda includes it as well as the machine. */
#pragma once
#include <stdint.h>
#include <string.h>

#define TENSOR_MAP_MAGIC 0x50414d54u /* "TMAP" */
#define TENSOR_MAP_RANKS 5

/* Numbered as CUtensorMapDataType. */
enum tensor_map_type {
  TENSOR_MAP_UINT8,
  TENSOR_MAP_UINT16,
  TENSOR_MAP_UINT32,
  TENSOR_MAP_INT32,
  TENSOR_MAP_UINT64,
  TENSOR_MAP_INT64,
  TENSOR_MAP_FLOAT16,
  TENSOR_MAP_FLOAT32,
  TENSOR_MAP_FLOAT64,
  TENSOR_MAP_BFLOAT16,
  TENSOR_MAP_FLOAT32_FTZ,
  TENSOR_MAP_TFLOAT32,
  TENSOR_MAP_TFLOAT32_FTZ,
  TENSOR_MAP_TYPES
};

struct tensor_map {
  uint32_t magic;
  uint8_t type, rank_less_one, interleave, swizzle, l2, fill; /* CUtensorMap...: enumerators' numbers */
  uint8_t element_stride[TENSOR_MAP_RANKS];
  uint8_t reserved;
  uint64_t address;
  uint64_t stride[TENSOR_MAP_RANKS - 1]; /* bytes from one to the next along dimensions 1, 2, ... */
  uint32_t size[TENSOR_MAP_RANKS];       /* innermost dimension first; 2^32 is stored as 0 */
  uint16_t box[TENSOR_MAP_RANKS];
  uint8_t unused[128 - 4 - 12 - 8 - 8 * 4 - 4 * 5 - 2 * 5];
};

static inline uint32_t tensor_map_element(int type) {
  static const uint8_t bytes[TENSOR_MAP_TYPES] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  return type >= 0 && type < TENSOR_MAP_TYPES ? bytes[type] : 0;
}

static inline int tensor_map_floats(int type) { return type >= TENSOR_MAP_FLOAT16 && type < TENSOR_MAP_TYPES; }

/* Why the map may not be used: NULL if it may. */
static inline const char *tensor_map_fault(const struct tensor_map *map) {
  const uint32_t element = tensor_map_element(map->type);
  const int rank = map->rank_less_one + 1;
  if (map->magic != TENSOR_MAP_MAGIC) return "no tensor map was written there";
  if (!element) return "the data type is unknown";
  if (rank > TENSOR_MAP_RANKS) return "the rank is not 1 to 5";
  if (map->interleave > 2) return "the interleave layout is unknown";
  if (map->interleave && rank < 3) return "an interleaved tensor has a rank of 3 or more";
  if (map->swizzle > 3) return "the swizzle mode is unknown on this GPU";
  if (map->l2 > 3) return "the L2 promotion is unknown";
  if (map->fill > 1) return "the fill mode is unknown";
  if (map->fill && !tensor_map_floats(map->type)) return "only floating-point tensors are filled with NaN";
  const uint32_t alignment = map->interleave == 2 ? 32 : 16;
  if (!map->address || map->address % alignment) return "the address is null or no multiple of 16 bytes (interleaved by 32: 32)";
  for (int k = 0; k < rank; k++) {
    if (map->box[k] < 1 || map->box[k] > 256) return "a side of the box is not 1 to 256";
    if (map->element_stride[k] < 1 || map->element_stride[k] > 8) return "an element stride is not 1 to 8";
    if (k && (map->stride[k - 1] % alignment || map->stride[k - 1] >> 40))
      return "a stride is no multiple of 16 bytes (interleaved by 32: 32) or not below 2^40";
  }
  const uint32_t inner = map->box[0] * element;
  if (!map->interleave) {
    if (inner % 16) return "the box's inner side is no multiple of 16 bytes";
    if (map->swizzle && inner > 16u << map->swizzle) return "the box's inner side is longer than the swizzle's span";
  }
  if (map->interleave == 2 && map->swizzle != 1) return "a tensor interleaved by 32 bytes is swizzled by 32 bytes";
  return NULL;
}

/* cuTensorMapEncodeTiled's arguments and answer: 0, or 1 (CUDA_ERROR_INVALID_VALUE), which leaves `out` as it was. */
static inline int tensor_map_encode(void *out, int type, uint32_t rank, void *address, const uint64_t *size,
                                    const uint64_t *stride, const uint32_t *box, const uint32_t *element_stride,
                                    int interleave, int swizzle, int l2, int fill) {
  struct tensor_map map;
  if (!out || (uintptr_t)out % 64 || rank < 1 || rank > TENSOR_MAP_RANKS) return 1;
  if (!size || !box || !element_stride || (rank > 1 && !stride)) return 1;
  if (type < 0 || type >= TENSOR_MAP_TYPES || (interleave | swizzle | l2 | fill) < 0) return 1;
  if (interleave > 255 || swizzle > 255 || l2 > 255 || fill > 255) return 1;
  memset(&map, 0, sizeof map);
  map.magic = TENSOR_MAP_MAGIC;
  map.type = (uint8_t)type, map.rank_less_one = (uint8_t)(rank - 1);
  map.interleave = (uint8_t)interleave, map.swizzle = (uint8_t)swizzle, map.l2 = (uint8_t)l2, map.fill = (uint8_t)fill;
  map.address = (uint64_t)(uintptr_t)address;
  for (uint32_t k = 0; k < rank; k++) {
    if (size[k] < 1 || size[k] > 1ull << 32 || box[k] > 256 || element_stride[k] > 8) return 1;
    map.size[k] = (uint32_t)size[k];
    map.box[k] = (uint16_t)box[k];
    map.element_stride[k] = (uint8_t)element_stride[k];
    if (k) map.stride[k - 1] = stride[k - 1];
  }
  if (tensor_map_fault(&map)) return 1;
  memcpy(out, &map, sizeof map);
  return 0;
}
