#include "cuda/decode/cases.h"

namespace openmsa::test {
namespace {

struct Row {
  openmsa_dtype dtype;
  ShapeRow shape;
};

// clang-format off
constexpr Row kRows[] = {
    //                     kv heads  group  head_dim  index_dim  block  topk  init  local  page
    {OPENMSA_BFLOAT16, {       2,     1,       64,        64,    64,    3,    0,     1,    0}},
    {OPENMSA_FLOAT16,  {       1,     2,       64,       128,    64,    1,    0,     1,   16}},
    {OPENMSA_BFLOAT16, {       4,     4,      128,        64,    64,   17,    1,     2,   32}},
    {OPENMSA_FLOAT16,  {       5,     8,       64,        64,   128,    3,    3,     0,  128}},
    {OPENMSA_BFLOAT16, {       1,    16,      128,       128,   128,   16,    0,     1,    0}},
    {OPENMSA_BFLOAT16, {       4,    16,      128,       128,   128,   16,    0,     1,  128}},
    {OPENMSA_FLOAT16,  {       4,    16,      128,       128,   128,   16,    2,     3,   64}},
    {OPENMSA_FLOAT16,  {       2,     2,      128,       128,    64,   33,    2,     3,    0}},
    {OPENMSA_BFLOAT16, {       1,     8,      128,        64,    64,   64,    0,     1,   64}},
    {OPENMSA_FLOAT16,  {       1,     1,       64,        64,   128,   64,    3,     2,   16}},
    {OPENMSA_BFLOAT16, {       8,     4,       64,       128,   128,    1,    0,     0,   32}},
    {OPENMSA_BFLOAT16, {      64,     1,       64,        64,    64,    3,    1,     1,   16}},
    {OPENMSA_FLOAT16,  {      64,     2,      128,        64,    64,    2,    0,     1,    0}},
};

constexpr Row kFp8Rows[] = {
    //                     kv heads  group  head_dim  index_dim  block  topk  init  local  page
    {OPENMSA_BFLOAT16, {       2,     1,       64,       128,    64,    3,    0,     1,   16}},
    {OPENMSA_FLOAT16,  {       2,     4,      128,        64,    64,   16,    0,     1,   32}},
    {OPENMSA_FLOAT16,  {       2,    16,       64,        64,   128,    3,    0,     1,   64}},
    {OPENMSA_BFLOAT16, {       1,    16,      128,       128,   128,   16,    0,     1,  128}},
    {OPENMSA_BFLOAT16, {       3,     4,      128,        64,    64,    3,    1,     1,   64}},
    {OPENMSA_FLOAT16,  {       2,     1,       64,       128,   128,   16,    0,     2,   16}},
};
// clang-format on

}  // namespace

LayerShape decode_batch(LayerShape shape) {
  const std::int64_t block = shape.block_size, most = (shape.topk + 1) * block;
  shape.seqlens_k = {0,        1,    3,        block - 1,           block, block + 1, 2 * block + 1,
                     most - 1, most, most + 1, most + 5 * block + 7};
  shape.seqlens_q = {1, 1, 5, 16, 1, 3, 16, 1, 5, 2, 16};
  shape.padding_q = 3;
  return shape;
}

std::vector<NamedShape> decode_shapes() {
  std::vector<NamedShape> result;
  for (const Row& row : kRows) result.push_back(named("decode_", decode_batch(row.shape.of(row.dtype))));
  return result;
}

std::vector<NamedShape> fp8_decode_shapes() {
  struct KeyDtypes {
    openmsa_dtype kv, index;
  };
  constexpr openmsa_dtype kFp8 = OPENMSA_FLOAT8_E4M3;
  std::vector<NamedShape> result;
  for (const Row& row : kFp8Rows) {
    for (const KeyDtypes& dtypes : {KeyDtypes{kFp8, {}}, {{}, kFp8}, {kFp8, kFp8}}) {
      for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken}) {
        LayerShape shape = row.shape.of(row.dtype);
        shape.kv_dtype = dtypes.kv;
        shape.index_dtype = dtypes.index;
        shape.scales = scales;
        shape.seqlens_k = {row.shape.block_size + 1, 0, (row.shape.topk + 3) * row.shape.block_size - 1};
        result.push_back(named("", shape));
      }
    }
  }
  return result;
}

}  // namespace openmsa::test
