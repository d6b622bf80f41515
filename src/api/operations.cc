#include "api/operations.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "core/error.h"

namespace openmsa::api {
namespace {

using enum Dim;
using enum Kind;
using T = openmsa_tensors;

// Two tables, wider than other code so that they read as tables.
// clang-format off

constexpr Field kFields[] = {
    {"cu_seqlens_q",   &T::cu_seqlens_q,   kInt32,       1, {kBatchPlus1}},
    {"cu_seqlens_k",   &T::cu_seqlens_k,   kInt32,       1, {kBatchPlus1}},
    {"seqlens_k",      &T::seqlens_k,      kInt32,       1, {kBatch}},
    {"block_table",    &T::block_table,    kInt32,       2, {kBatch, kMaxPages}},
    {"q",              &T::q,              kData,        3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"k",              &T::k,              kData,        3, {kTotalK, kHeadsKv, kHeadDim}},
    {"v",              &T::v,              kData,        3, {kTotalK, kHeadsKv, kHeadDim}},
    {"index_q",        &T::index_q,        kIndexQ,      3, {kTotalQ, kHeadsKv, kIndexDim}},
    {"index_k",        &T::index_k,        kIndexK,      2, {kTotalK, kIndexDim}},
    {"k_cache",        &T::k_cache,        kKvCache,     4, {kNumPages, kPageSize, kHeadsKv, kHeadDim}},
    {"v_cache",        &T::v_cache,        kKvCache,     4, {kNumPages, kPageSize, kHeadsKv, kHeadDim}},
    {"index_k_cache",  &T::index_k_cache,  kIndexKCache, 3, {kNumPages, kPageSize, kIndexDim}},
    {"k_scale",        &T::k_scale,        kScale,       2, {kHeadsKv, kKeyTokens}},
    {"v_scale",        &T::v_scale,        kScale,       2, {kHeadsKv, kKeyTokens}},
    {"index_k_scale",  &T::index_k_scale,  kScale,       1, {kKeyTokens}},
    {"block_scores",   &T::block_scores,   kFigure,      3, {kHeadsKv, kTotalQ, kNumBlocks}},
    {"topk_indices",   &T::topk_indices,   kInt32,       3, {kHeadsKv, kTotalQ, kTopk}},
    {"o",              &T::o,              kResult,      3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"lse",            &T::lse,            kFigure,      2, {kTotalQ, kHeadsQ}},
    {"d_o",            &T::d_o,            kResult,      3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"d_q",            &T::d_q,            kResult,      3, {kTotalQ, kHeadsQ, kHeadDim}},
    {"d_k",            &T::d_k,            kResult,      3, {kTotalK, kHeadsKv, kHeadDim}},
    {"d_v",            &T::d_v,            kResult,      3, {kTotalK, kHeadsKv, kHeadDim}},
    {"d_index_q",      &T::d_index_q,      kResult,      3, {kTotalQ, kHeadsKv, kIndexDim}},
    {"d_index_k",      &T::d_index_k,      kResult,      2, {kTotalK, kIndexDim}},
    {"kl_loss",        &T::kl_loss,        kFigure,      1, {kOne}},
    {"block_recall",   &T::block_recall,   kFigure,      2, {kHeadsKv, kTotalQ}},
    {"score_recall",   &T::score_recall,   kFigure,      2, {kHeadsKv, kTotalQ}},
    {"d_lse",          &T::d_lse,          kFigure,      2, {kTotalQ, kHeadsQ}},
    {"kl_weights",     &T::kl_weights,     kFigure,      1, {kTotalQ}},
    {"candidates",     &T::candidates,     kCandidate,   3, {kHeadsKv, kTotalQ, kTopk}},
    {"all_candidates", &T::all_candidates, kCandidate,   4, {kShardCount, kHeadsKv, kTotalQ, kTopk}},
    {"partial_o",      &T::partial_o,      kResult,      4, {kShardCount, kTotalQ, kHeadsQ, kHeadDim}},
    {"partial_lse",    &T::partial_lse,    kFigure,      3, {kShardCount, kTotalQ, kHeadsQ}},
};
static_assert(std::size(kFields) <= 64, "a FieldSet has 64 bits");

/// The fields named in a text, "q k v". A name that kFields has not does not compile.
struct Names {
  FieldSet set = 0;

  consteval Names(const char* text) {
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t length = std::min(rest.find(' '), rest.size());
      set |= FieldSet{1} << place(rest.substr(0, length));
      rest.remove_prefix(std::min(length + 1, rest.size()));
    }
  }
  static consteval std::uint32_t place(std::string_view name) {
    for (std::uint32_t id = 0; id < std::size(kFields); ++id) {
      if (name == kFields[id].name) return id;
    }
    throw "no field of this name";
  }
};

struct Row {
  const char* name;
  Names reads, may_read, writes, may_write;
  std::uint32_t flags;
};

/// By openmsa_op. k, v and index_k stand for the layer's keys, wherever the plan keeps them; every operation may also
/// read cu_seqlens_q, and what operation() adds.
constexpr Row kOperations[] = {
//   name                                 reads                                           may read                   writes             may write                              flags
    {"openmsa_block_scores",              "index_q index_k",                              "",                        "block_scores",    "",                                    0},
    {"openmsa_topk",                      "block_scores seqlens_k",                       "",                        "topk_indices",    "",                                    kWithoutKeys},
    {"openmsa_select_blocks",             "index_q index_k",                              "",                        "topk_indices",    "",                                    0},
    {"openmsa_sparse_attention",          "q k v topk_indices",                           "",                        "o",               "lse",                                 kServesShards},
    {"openmsa_msa_attention",             "q k v index_q index_k",                        "",                        "o",               "lse topk_indices",                    0},
    {"openmsa_dense_attention",           "q k v",                                        "",                        "o",               "lse",                                 0},
    {"openmsa_sparse_attention_backward", "q k v topk_indices o lse d_o",                 "d_lse",                   "d_q d_k d_v",     "",                                    kContiguousOnly | kBoundsTotalK},
    {"openmsa_dense_attention_backward",  "q k v o lse d_o",                              "d_lse",                   "d_q d_k d_v",     "",                                    kContiguousOnly | kBoundsTotalK},
    {"openmsa_kl_loss",                   "q k lse index_q index_k",                      "topk_indices kl_weights", "",                "kl_loss d_index_q d_index_k d_q d_k", kContiguousOnly | kBoundsTotalK | kAnyOutput},
    {"openmsa_block_recall",              "q k topk_indices",                             "",                        "",                "block_recall score_recall",           kContiguousOnly | kAnyOutput},
    {"openmsa_append_kv",                 "seqlens_k block_table",                        "k v index_k",             "",                "k_cache v_cache index_k_cache",       kServesShards},
    {"openmsa_msa_attention_backward",    "q k v index_q index_k topk_indices o lse d_o", "d_lse kl_weights",        "d_q d_k d_v",     "kl_loss d_index_q d_index_k",         kContiguousOnly | kBoundsTotalK | kAnyOutput},
    {"openmsa_select_candidates",         "index_q index_k",                              "",                        "candidates",      "",                                    kServesShards},
    {"openmsa_merge_candidates",          "all_candidates seqlens_k",                     "",                        "topk_indices",    "",                                    kServesShards | kWithoutKeys},
    {"openmsa_merge_partials",            "partial_o partial_lse",                        "",                        "o",               "lse",                                 kServesShards | kWithoutKeys},
};
static_assert(std::size(kOperations) == OPENMSA_OP_COUNT, "a row per operation");

// clang-format on

consteval FieldSet set_of(Names names) { return names.set; }

/// `names` where `condition` holds.
constexpr FieldSet where(bool condition, FieldSet set) { return condition ? set : 0; }

/// append_kv reads a scale for all keys and writes those of tokens.
void add_appended_scales(Operation& operation, bool has_fp8_kv, bool has_fp8_index) {
  const FieldSet scales = where(has_fp8_kv, set_of("k_scale v_scale")) | where(has_fp8_index, set_of("index_k_scale"));
  operation.may_read |= scales;
  operation.may_write |= scales;
}

/// Keys of a paged plan lie in its caches.
void move_keys_to_pages(Operation& operation) {
  const FieldSet reads = operation.reads;
  operation.reads &= ~set_of("k v index_k");
  operation.reads |= where(contains(reads, &T::k), set_of("k_cache")) |
                     where(contains(reads, &T::v), set_of("v_cache")) |
                     where(contains(reads, &T::index_k), set_of("index_k_cache")) | set_of("seqlens_k block_table");
}

}  // namespace

std::span<const Field> fields() { return kFields; }

std::uint32_t id_of(TensorMember member) {
  const auto* const found =
      std::find_if(std::begin(kFields), std::end(kFields), [=](const Field& field) { return field.member == member; });
  return static_cast<std::uint32_t>(found - std::begin(kFields));
}

const char* dim_name(Dim dim) {
  constexpr const char* kNames[] = {
      "total_q",     "total_k",      "batch",    "batch + 1", "num_pages", "max_pages", "num_blocks",  "key_tokens", "",
      "num_heads_q", "num_heads_kv", "head_dim", "index_dim", "page_size", "topk",      "shard_count", "1"};
  return kNames[static_cast<int>(dim)];
}

const char* operation_name(openmsa_op op) { return kOperations[op].name + std::char_traits<char>::length("openmsa_"); }

Operation operation(openmsa_op op, const openmsa_config& config) {
  core::require(op >= 0 && op < OPENMSA_OP_COUNT, "op: expected 0 to ", OPENMSA_OP_COUNT - 1, ", got ",
                static_cast<int>(op));
  const Row& row = kOperations[op];
  Operation result{row.name, row.reads.set, row.may_read.set, row.writes.set, row.may_write.set, row.flags};
  result.may_read |= set_of("cu_seqlens_q");
  const bool has_fp8_kv = config.kv_dtype == OPENMSA_FLOAT8_E4M3;
  const bool has_fp8_index = config.index_dtype == OPENMSA_FLOAT8_E4M3;
  if (op == OPENMSA_OP_APPEND_KV) {
    add_appended_scales(result, has_fp8_kv, has_fp8_index);
    return result;
  }
  if (result.has(kWithoutKeys)) return result;
  result.may_read |= where(has_fp8_kv && contains(result.reads, &T::k), set_of("k_scale")) |
                     where(has_fp8_kv && contains(result.reads, &T::v), set_of("v_scale")) |
                     where(has_fp8_index && contains(result.reads, &T::index_k), set_of("index_k_scale"));
  if (config.page_size == 0) {
    result.may_read |= set_of("cu_seqlens_k");
  } else {
    move_keys_to_pages(result);
  }
  return result;
}

}  // namespace openmsa::api

// -------------------------------------------------------------------------------------------- entry points

#define OPENMSA_ENTRY(function, op)                                                                                \
  openmsa_status function(const openmsa_plan* plan, const openmsa_tensors* tensors, openmsa_workspace workspace) { \
    return openmsa_run(plan, op, tensors, workspace);                                                              \
  }
OPENMSA_ENTRY(openmsa_block_scores, OPENMSA_OP_BLOCK_SCORES)
OPENMSA_ENTRY(openmsa_topk, OPENMSA_OP_TOPK)
OPENMSA_ENTRY(openmsa_select_blocks, OPENMSA_OP_SELECT_BLOCKS)
OPENMSA_ENTRY(openmsa_sparse_attention, OPENMSA_OP_SPARSE_ATTENTION)
OPENMSA_ENTRY(openmsa_msa_attention, OPENMSA_OP_MSA_ATTENTION)
OPENMSA_ENTRY(openmsa_dense_attention, OPENMSA_OP_DENSE_ATTENTION)
OPENMSA_ENTRY(openmsa_sparse_attention_backward, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD)
OPENMSA_ENTRY(openmsa_dense_attention_backward, OPENMSA_OP_DENSE_ATTENTION_BACKWARD)
OPENMSA_ENTRY(openmsa_kl_loss, OPENMSA_OP_KL_LOSS)
OPENMSA_ENTRY(openmsa_block_recall, OPENMSA_OP_BLOCK_RECALL)
OPENMSA_ENTRY(openmsa_append_kv, OPENMSA_OP_APPEND_KV)
OPENMSA_ENTRY(openmsa_msa_attention_backward, OPENMSA_OP_MSA_ATTENTION_BACKWARD)
OPENMSA_ENTRY(openmsa_select_candidates, OPENMSA_OP_SELECT_CANDIDATES)
OPENMSA_ENTRY(openmsa_merge_candidates, OPENMSA_OP_MERGE_CANDIDATES)
OPENMSA_ENTRY(openmsa_merge_partials, OPENMSA_OP_MERGE_PARTIALS)
#undef OPENMSA_ENTRY
