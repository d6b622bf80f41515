// What each operation takes and gives, as one table. src/api/check.cc enforces it; docs/api.md prints it.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace openmsa::api {

/// Extents that tensors of a call share. Those above kFree come from the plan; the others from the first tensor seen,
/// but kNumPages, of which each cache has its own, and kKeyTokens, a scale's, which follows from the keys that it is
/// of.
enum class Dim {
  kTotalQ,
  kTotalK,
  kBatch,
  kBatchPlus1,
  kNumPages,
  kMaxPages,
  kNumBlocks,
  kKeyTokens,
  kFree,
  kHeadsQ,
  kHeadsKv,
  kHeadDim,
  kIndexDim,
  kPageSize,
  kTopk,
  kOne,
};

/// "total_q" and so on, as in openmsa.h.
const char* dim_name(Dim dim);

enum class Kind {
  kInt32,
  kData,         // the plan's dtype, channels last
  kKvCache,      // kv_dtype, channels last
  kIndexK,       // index_dtype, channels last; of a plan with pages they are new keys, in the plan's dtype
  kIndexKCache,  // index_dtype, channels last
  kScale,        // fp32, no channels: of the field's shape or, one number for all, [1]
  kResult,       // the plan's dtype or fp32, channels last
  kFigure,       // fp32, on the reference backend fp64 too; no channels
};

/// One member of openmsa_tensors.
struct Field {
  const char* name;
  openmsa_tensor openmsa_tensors::*member;
  Kind kind;
  std::int32_t rank;
  Dim shape[OPENMSA_MAX_RANK];
};

/// Positions in fields().
enum FieldId : std::uint32_t {
  kCuSeqlensQ,
  kCuSeqlensK,
  kSeqlensK,
  kBlockTable,
  kQ,
  kK,
  kV,
  kIndexQ,
  kIndexK,
  kKCache,
  kVCache,
  kIndexKCache,
  kKScale,
  kVScale,
  kIndexKScale,
  kBlockScores,
  kTopkIndices,
  kO,
  kLse,
  kDO,
  kDQ,
  kDK,
  kDV,
  kDIndexQ,
  kDIndexK,
  kKlLoss,
  kBlockRecall,
  kScoreRecall,
  kFieldCount,
};

std::span<const Field, kFieldCount> fields();

/// A set of fields.
using FieldSet = std::uint32_t;
template <class... Ids>
constexpr FieldSet set_of(Ids... ids) {
  return (FieldSet{0} | ... | (FieldSet{1} << ids));
}
static_assert(kFieldCount <= 32);
constexpr bool contains(FieldSet set, std::uint32_t id) { return (set >> id & 1u) != 0; }

/// "msa_attention": the function of openmsa.h without its prefix. `op` is an operation.
const char* operation_name(openmsa_op op);

struct Operation {
  const char* name;  // "openmsa_msa_attention", as messages call it
  FieldSet reads;
  FieldSet reads_optional;
  FieldSet writes;
  FieldSet writes_optional;
  bool writes_any;       // at least one of writes_optional must be present
  bool contiguous_only;  // paged plans are refused
};

/// The operation with the tensors in which a plan keeps its keys and their scales.
Operation operation(openmsa_op op, const openmsa_config& config);

}  // namespace openmsa::api
