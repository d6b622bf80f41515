// The tensors of a call and what each operation does with them, as two tables. src/api/check.cc enforces them;
// src/api/names.cc shows them to callers.
#pragma once

#include <openmsa/openmsa.h>

#include <cstdint>
#include <span>

namespace openmsa::api {

/// Extents that tensors of a call share. Those above kFree come from the plan; the others from the first tensor seen,
/// but kNumPages, of which each cache has its own, and kKeyTokens, which follows from the keys that a scale belongs to:
/// the number of their tokens or, of index keys with a scale per kv_block, of their pages.
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
  kShardCount,
  kOne,
};

/// "total_q" and so on, as in openmsa.h.
const char* dim_name(Dim dim);

enum class Kind {
  kInt32,
  kCandidate,    // int64, no channels
  kData,         // the plan's dtype, channels last
  kIndexQ,       // the plan's dtype or, where it is cast to e4m3, that; channels last
  kKvCache,      // kv_dtype, channels last
  kIndexK,       // index_dtype, channels last; of a plan with pages they are new keys, in the plan's dtype
  kIndexKCache,  // index_dtype, channels last
  kScale,        // fp32, no channels: of the field's shape or, one number for all, [1]
  kResult,       // the plan's dtype or fp32, channels last
  kFigure,       // fp32, on the reference backend fp64 too; no channels
};

using TensorMember = openmsa_tensor openmsa_tensors::*;

/// One member of openmsa_tensors.
struct Field {
  const char* name;
  TensorMember member;
  Kind kind;
  std::int32_t rank;
  Dim shape[OPENMSA_MAX_RANK];
};

/// All fields, in the order of openmsa_tensors.
std::span<const Field> fields();

/// Place of a member in fields().
std::uint32_t id_of(TensorMember member);

/// A set of fields: bit i stands for fields()[i].
using FieldSet = std::uint64_t;
constexpr bool contains(FieldSet set, std::uint32_t id) { return (set >> id & 1u) != 0; }
inline bool contains(FieldSet set, TensorMember member) { return contains(set, id_of(member)); }

/// Flags of an operation.
enum : std::uint32_t {
  kAnyOutput = 1,       // at least one of the tensors that it may write must be present
  kContiguousOnly = 2,  // paged plans are refused
  kBoundsTotalK = 4,    // the plan's max_total_k bounds its keys
  kWithoutKeys = 8,     // reads no keys, wherever the plan has them
  kServesShards = 16,   // plans of a shard are not refused
};

struct Operation {
  const char* name;  // "openmsa_msa_attention", as messages call it
  FieldSet reads;
  FieldSet may_read;
  FieldSet writes;
  FieldSet may_write;
  std::uint32_t flags;

  bool has(std::uint32_t flag) const { return (flags & flag) != 0; }
};

/// The operation with the tensors in which a plan keeps its keys and their scales.
Operation operation(openmsa_op op, const openmsa_config& config);

/// "msa_attention": the function of openmsa.h without its prefix. `op` is an operation.
const char* operation_name(openmsa_op op);

}  // namespace openmsa::api
