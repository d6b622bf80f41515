#include "support/shapes.h"

#include <algorithm>
#include <utility>

namespace openmsa::test {
namespace {

// clang-format off
constexpr ShapeRow kRows[] = {
    // kv heads  group  head_dim  index_dim  block  topk  init  local  page
      {       2,     1,       64,        64,    32,    4,    0,     1,    0},
      {       3,     2,       64,       128,    64,    1,    0,     1,    0},
      {       2,     4,      128,        64,    32,    3,    1,     1,    0},
      {       1,    16,      128,       128,   128,    2,    0,     1,    0},
      {       1,     8,       64,        64,    32,   64,    0,     1,    0},
      {       2,     3,       40,        24,     8,   16,    2,     3,    0},
      {       2,     2,       64,        64,    32,    2,    2,     2,    0},
      {       2,     4,      128,        64,    32,    3,    0,     1,   16},
      {       1,    16,       64,        64,    64,    4,    1,     1,   64},
      {       2,     2,      128,       128,   128,    3,    0,     1,   32},
      {       2,     1,       64,       128,    64,    2,    0,     0,   16},
      {       1,     8,      128,        64,   128,   16,    0,     2,  128},
      {       1,    64,        8,         8,     8,    3,    0,     1,    0},
      {       1,     3,      256,       256,   256,    2,    0,     1,    0},
};

/// Few queries over many kv_blocks, which backends may split and merge.
constexpr ShapeRow kDecodeRows[] = {
    // kv heads  group  head_dim  index_dim  block  topk  init  local  page
      {       2,     4,       64,        64,    16,    6,    1,     2,    0},
      {       2,     4,       64,        64,    16,    6,    1,     2,    8},
};
// clang-format on

const char* dtype_name(openmsa_dtype dtype) {
  return dtype == OPENMSA_FLOAT32 ? "fp32" : dtype == OPENMSA_BFLOAT16 ? "bf16" : "fp16";
}

std::string scales_name(Scales scales) {
  constexpr const char* kNames[] = {"", "_scale_one", "_scale_per_token", "_scale_per_block"};
  return kNames[static_cast<int>(scales)];
}

std::string rounding_name(openmsa_index_q_rounding rounding) {
  constexpr const char* kNames[] = {"", "_cast", "_exact"};
  return kNames[static_cast<int>(rounding)];
}

/// A whole prompt, decode, a request without queries, speculation, a request without keys, a chunk behind a prefix.
struct Lengths {
  std::vector<std::int64_t> q, k;
};

LayerShape with_lengths(LayerShape shape, const Lengths& seqlens) {
  shape.seqlens_q = seqlens.q;
  shape.seqlens_k = seqlens.k;
  shape.padding_q = 3;
  return shape;
}

std::vector<BackendShape> on(openmsa_backend backend, const std::vector<NamedShape>& shapes) {
  std::vector<BackendShape> result;
  for (const NamedShape& named : shapes) result.push_back({backend, named});
  return result;
}

std::vector<BackendShape> cpu_shapes() {
  std::vector<BackendShape> result = on(OPENMSA_BACKEND_CPU, all_shapes());
  for (BackendShape& fp8 : on(OPENMSA_BACKEND_CPU, fp8_shapes())) result.push_back(std::move(fp8));
  return result;
}

const Lengths kRagged{{70, 1, 0, 4, 2, 33}, {70, 259, 20, 133, 0, 97}};
const Lengths kDecode{{1, 16, 5, 0}, {1000, 700, 40, 300}};

}  // namespace

LayerShape ShapeRow::of(openmsa_dtype dtype) const {
  return {.dtype = dtype,
          .num_heads_q = num_heads_kv * group_size,
          .num_heads_kv = num_heads_kv,
          .head_dim = head_dim,
          .index_dim = index_dim,
          .block_size = block_size,
          .topk = topk,
          .num_init_blocks = num_init_blocks,
          .num_local_blocks = num_local_blocks,
          .page_size = page_size};
}

NamedShape named(const std::string& prefix, LayerShape shape) {
  const auto text = [](const char* label, std::int32_t value) { return label + std::to_string(value); };
  return {prefix + dtype_name(shape.dtype) + text("_kv", shape.num_heads_kv) +
              text("_group", shape.num_heads_q / shape.num_heads_kv) + text("_d", shape.head_dim) +
              text("_index", shape.index_dim) + text("_block", shape.block_size) + text("_topk", shape.topk) +
              text("_init", shape.num_init_blocks) + text("_local", shape.num_local_blocks) +
              text("_page", shape.page_size) + (shape.kv_dtype == OPENMSA_FLOAT8_E4M3 ? "_kv8" : "") +
              (shape.index_dtype == OPENMSA_FLOAT8_E4M3 ? "_index8" : "") + scales_name(shape.scales) +
              rounding_name(shape.index_q_rounding),
          std::move(shape)};
}

std::vector<NamedShape> all_shapes() {
  std::vector<NamedShape> result;
  for (const openmsa_dtype dtype : {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    for (const ShapeRow& row : kRows) result.push_back(named("", with_lengths(row.of(dtype), kRagged)));
    for (const ShapeRow& row : kDecodeRows) result.push_back(named("decode_", with_lengths(row.of(dtype), kDecode)));
  }
  return result;
}

std::vector<BackendShape> attention_shapes() {
  if (const Device* device = registered_device()) return on(OPENMSA_BACKEND_CUDA, device->attention_shapes());
  return cpu_shapes();
}

std::vector<BackendShape> selection_shapes() {
  if (const Device* device = registered_device()) return on(OPENMSA_BACKEND_CUDA, device->selection_shapes());
  return cpu_shapes();
}

std::vector<NamedShape> contiguous_shapes() {
  std::vector<NamedShape> shapes = all_shapes();
  std::erase_if(shapes, [](const NamedShape& named) { return named.shape.page_size != 0; });
  return shapes;
}

std::vector<BackendShape> gradient_shapes() {
  const Device* device = registered_device();
  if (device == nullptr) return on(OPENMSA_BACKEND_CPU, contiguous_shapes());
  std::vector<BackendShape> shapes = on(OPENMSA_BACKEND_CUDA, device->attention_shapes());
  std::erase_if(shapes, [](const BackendShape& shape) {
    return shape.named.shape.page_size != 0 || shape.named.shape.kv_dtype == OPENMSA_FLOAT8_E4M3;
  });
  return shapes;
}

std::vector<NamedShape> fp8_shapes() {
  constexpr openmsa_dtype kDtypes[] = {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16};
  constexpr Scales kScales[] = {Scales::kPerToken, Scales::kOne, Scales::kNone};
  std::vector<NamedShape> result;
  const auto add = [&](const std::string& prefix, const ShapeRow& row, const Lengths& lengths) {
    const bool is_paged = row.page_size != 0;
    for (const Scales scales : kScales) {
      LayerShape shape = with_lengths(row.of(kDtypes[result.size() % 3]), lengths);
      shape.index_dtype = OPENMSA_FLOAT8_E4M3;
      if (is_paged) shape.kv_dtype = OPENMSA_FLOAT8_E4M3;
      shape.scales = is_paged ? scales : kScales[result.size() / 3 % 3];
      result.push_back(named(prefix, shape));
      if (!is_paged) return;  // the scales are those of index keys alone: one mode a row
    }
  };
  for (const ShapeRow& row : kRows) add("", row, kRagged);
  for (const ShapeRow& row : kDecodeRows) add("decode_", row, kDecode);
  for (const bool is_index : {false, true}) {  // one of both
    LayerShape shape = with_lengths(kRows[7].of(OPENMSA_BFLOAT16), kRagged);
    (is_index ? shape.index_dtype : shape.kv_dtype) = OPENMSA_FLOAT8_E4M3;
    shape.scales = Scales::kPerToken;
    result.push_back(named("", shape));
  }
  for (const ShapeRow* row :
       {&kRows[2], &kRows[8], &kRows[10], &kDecodeRows[1]}) {  // whole and partial blocks as pages
    for (const auto rounding : {OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
      const bool is_paged = row->page_size != 0;
      if (!is_paged && rounding == OPENMSA_INDEX_Q_SCALED) continue;  // is above
      for (const openmsa_dtype dtype : kDtypes) {
        LayerShape shape = with_lengths(row->of(dtype), row == &kDecodeRows[1] ? kDecode : kRagged);
        shape.index_dtype = OPENMSA_FLOAT8_E4M3;
        shape.scales = is_paged ? Scales::kPerBlock : Scales::kPerToken;
        shape.index_q_rounding = rounding;
        result.push_back(named(row == &kDecodeRows[1] ? "decode_" : "", shape));
      }
    }
  }
  return result;
}

}  // namespace openmsa::test
