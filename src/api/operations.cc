#include "api/operations.h"

#include <array>
#include <string>

#include "core/error.h"
#include "core/operation_name.h"

namespace openmsa::api {
namespace {

using enum Dim;
using T = openmsa_tensors;

constexpr std::array<Field, kFieldCount> kFields = {{
    {"cu_seqlens_q", &T::cu_seqlens_q, Kind::kInt32, 1, {kBatchPlus1}},
    {"cu_seqlens_k", &T::cu_seqlens_k, Kind::kInt32, 1, {kBatchPlus1}},
    {"seqlens_k", &T::seqlens_k, Kind::kInt32, 1, {kBatch}},
    {"block_table", &T::block_table, Kind::kInt32, 2, {kBatch, kMaxPages}},
    {"q", &T::q, Kind::kData, 3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"k", &T::k, Kind::kData, 3, {kTotalK, kHeadsKv, kHeadDim}},
    {"v", &T::v, Kind::kData, 3, {kTotalK, kHeadsKv, kHeadDim}},
    {"index_q", &T::index_q, Kind::kData, 3, {kTotalQ, kHeadsKv, kIndexDim}},
    {"index_k", &T::index_k, Kind::kIndexK, 2, {kTotalK, kIndexDim}},
    {"k_cache", &T::k_cache, Kind::kKvCache, 4, {kNumPages, kPageSize, kHeadsKv, kHeadDim}},
    {"v_cache", &T::v_cache, Kind::kKvCache, 4, {kNumPages, kPageSize, kHeadsKv, kHeadDim}},
    {"index_k_cache", &T::index_k_cache, Kind::kIndexKCache, 3, {kNumPages, kPageSize, kIndexDim}},
    {"k_scale", &T::k_scale, Kind::kScale, 2, {kHeadsKv, kKeyTokens}},
    {"v_scale", &T::v_scale, Kind::kScale, 2, {kHeadsKv, kKeyTokens}},
    {"index_k_scale", &T::index_k_scale, Kind::kScale, 1, {kKeyTokens}},
    {"block_scores", &T::block_scores, Kind::kFigure, 3, {kHeadsKv, kTotalQ, kNumBlocks}},
    {"topk_indices", &T::topk_indices, Kind::kInt32, 3, {kHeadsKv, kTotalQ, kTopk}},
    {"o", &T::o, Kind::kResult, 3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"lse", &T::lse, Kind::kFigure, 2, {kTotalQ, kHeadsQ}},
    {"d_o", &T::d_o, Kind::kResult, 3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"d_q", &T::d_q, Kind::kResult, 3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"d_k", &T::d_k, Kind::kResult, 3, {kTotalK, kHeadsKv, kHeadDim}},
    {"d_v", &T::d_v, Kind::kResult, 3, {kTotalK, kHeadsKv, kHeadDim}},
    {"d_index_q", &T::d_index_q, Kind::kResult, 3, {kTotalQ, kHeadsKv, kIndexDim}},
    {"d_index_k", &T::d_index_k, Kind::kResult, 2, {kTotalK, kIndexDim}},
    {"kl_loss", &T::kl_loss, Kind::kFigure, 1, {kOne}},
    {"block_recall", &T::block_recall, Kind::kFigure, 2, {kHeadsKv, kTotalQ}},
    {"score_recall", &T::score_recall, Kind::kFigure, 2, {kHeadsKv, kTotalQ}},
}};

/// k, v and index_k below stand for the layer's keys, wherever the plan keeps them.
Operation unplaced(openmsa_op op) {
  constexpr FieldSet kNone = 0;
  const char* const name = core::operation_name(op);
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return {name, set_of(kIndexQ, kIndexK), kNone, set_of(kBlockScores), kNone, false, false};
    case OPENMSA_OP_TOPK:
      return {name, set_of(kBlockScores, kSeqlensK), kNone, set_of(kTopkIndices), kNone, false, false};
    case OPENMSA_OP_SELECT_BLOCKS:
      return {name, set_of(kIndexQ, kIndexK), kNone, set_of(kTopkIndices), kNone, false, false};
    case OPENMSA_OP_SPARSE_ATTENTION:
      return {name, set_of(kQ, kK, kV, kTopkIndices), kNone, set_of(kO), set_of(kLse), false, false};
    case OPENMSA_OP_MSA_ATTENTION:
      return {name, set_of(kQ, kK, kV, kIndexQ, kIndexK), kNone, set_of(kO), set_of(kLse, kTopkIndices), false, false};
    case OPENMSA_OP_DENSE_ATTENTION:
      return {name, set_of(kQ, kK, kV), kNone, set_of(kO), set_of(kLse), false, false};
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
      return {name, set_of(kQ, kK, kV, kTopkIndices, kO, kLse, kDO), kNone, set_of(kDQ, kDK, kDV), kNone, false, true};
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return {name, set_of(kQ, kK, kV, kO, kLse, kDO), kNone, set_of(kDQ, kDK, kDV), kNone, false, true};
    case OPENMSA_OP_KL_LOSS:
      return {name,  set_of(kQ, kK, kLse, kIndexQ, kIndexK),        set_of(kTopkIndices),
              kNone, set_of(kKlLoss, kDIndexQ, kDIndexK, kDQ, kDK), true,
              true};
    case OPENMSA_OP_BLOCK_RECALL:
      return {name, set_of(kQ, kK, kTopkIndices), kNone, kNone, set_of(kBlockRecall, kScoreRecall), true, true};
    case OPENMSA_OP_APPEND_KV:
      return {name,
              set_of(kK, kV, kSeqlensK, kBlockTable),
              set_of(kIndexK),
              set_of(kKCache, kVCache),
              set_of(kIndexKCache),
              false,
              false};
    default:
      core::fail(OPENMSA_INVALID_ARGUMENT, "op: expected 0 to ", OPENMSA_OP_COUNT - 1, ", got ", static_cast<int>(op));
  }
}

}  // namespace

std::span<const Field, kFieldCount> fields() { return kFields; }

const char* dim_name(Dim dim) {
  constexpr const char* kNames[] = {
      "total_q", "total_k",     "batch",        "batch + 1", "num_pages", "max_pages", "num_blocks", "key_tokens",
      "",        "num_heads_q", "num_heads_kv", "head_dim",  "index_dim", "page_size", "topk",       "1"};
  return kNames[static_cast<int>(dim)];
}

const char* operation_name(openmsa_op op) {
  return core::operation_name(op) + std::char_traits<char>::length("openmsa_");
}

Operation operation(openmsa_op op, const openmsa_config& config) {
  Operation result = unplaced(op);
  result.reads_optional |= set_of(kCuSeqlensQ);
  const bool has_fp8_kv = config.kv_dtype == OPENMSA_FLOAT8_E4M3;
  const bool has_fp8_index = config.index_dtype == OPENMSA_FLOAT8_E4M3;
  if (op == OPENMSA_OP_APPEND_KV) {  // reads a scale for all keys, writes those of tokens
    const FieldSet scales = (has_fp8_kv ? set_of(kKScale, kVScale) : 0) | (has_fp8_index ? set_of(kIndexKScale) : 0);
    result.reads_optional |= scales;
    result.writes_optional |= scales;
    return result;
  }
  if (op == OPENMSA_OP_TOPK) return result;
  if (has_fp8_kv && contains(result.reads, kK)) result.reads_optional |= set_of(kKScale);
  if (has_fp8_kv && contains(result.reads, kV)) result.reads_optional |= set_of(kVScale);
  if (has_fp8_index && contains(result.reads, kIndexK)) result.reads_optional |= set_of(kIndexKScale);
  if (config.page_size == 0) {
    result.reads_optional |= set_of(kCuSeqlensK);
    return result;
  }
  constexpr FieldSet kContiguous = set_of(kK, kV, kIndexK);
  const FieldSet keys = result.reads & kContiguous;
  result.reads &= ~kContiguous;
  if (contains(keys, kK)) result.reads |= set_of(kKCache);
  if (contains(keys, kV)) result.reads |= set_of(kVCache);
  if (contains(keys, kIndexK)) result.reads |= set_of(kIndexKCache);
  result.reads |= set_of(kSeqlensK, kBlockTable);
  return result;
}

}  // namespace openmsa::api
