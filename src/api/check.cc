#include "api/check.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "api/memory.h"
#include "api/operations.h"
#include "core/candidates.h"
#include "core/error.h"

namespace openmsa::api {
namespace {

using core::ceil_div;
using core::dtype_name;
using core::element;
using core::fail;
using core::is_one_scale;
using core::present;
using core::Problem;
using core::require;
using core::Sequence;

std::int64_t planned_extent(const core::Plan& plan, Dim dim) {
  switch (dim) {
    case Dim::kHeadsQ:
      return plan.config.num_heads_q;
    case Dim::kHeadsKv:
      return plan.config.num_heads_kv;
    case Dim::kHeadDim:
      return plan.config.head_dim;
    case Dim::kIndexDim:
      return plan.config.index_dim;
    case Dim::kPageSize:
      return plan.config.page_size;
    case Dim::kTopk:
      return plan.config.topk;
    case Dim::kShardCount:
      return plan.config.shard_count;
    default:
      return 1;
  }
}

// ---------------------------------------------------------------------------------------- one tensor at a time

void check_dtype(const core::Plan& plan, const Field& field, const openmsa_tensor& tensor) {
  const bool reference = core::is_reference(plan.config.backend);
  const auto refuse = [&](const std::string& expected) {
    fail(OPENMSA_INVALID_ARGUMENT, field.name, ": expected dtype ", expected, ", got ", dtype_name(tensor.dtype));
  };
  const auto expect = [&](openmsa_dtype expected) {
    if (tensor.dtype != expected) refuse(dtype_name(expected));
  };
  switch (field.kind) {
    case Kind::kInt32:
      expect(OPENMSA_INT32);
      break;
    case Kind::kCandidate:
      expect(OPENMSA_INT64);
      break;
    case Kind::kData:
      expect(plan.config.dtype);
      break;
    case Kind::kIndexQ: {
      const bool is_cast = plan.config.index_q_rounding == OPENMSA_INDEX_Q_CAST;
      if (tensor.dtype != plan.config.dtype && !(is_cast && tensor.dtype == OPENMSA_FLOAT8_E4M3)) {
        refuse(std::string(dtype_name(plan.config.dtype)) + (is_cast ? " or e4m3" : ""));
      }
      break;
    }
    case Kind::kKvCache:
      expect(plan.config.kv_dtype);
      break;
    case Kind::kIndexK:
      expect(plan.is_paged() ? plan.config.dtype : plan.config.index_dtype);
      break;
    case Kind::kIndexKCache:
      expect(plan.config.index_dtype);
      break;
    case Kind::kScale:
      expect(OPENMSA_FLOAT32);
      break;
    case Kind::kResult:
      if (tensor.dtype != plan.config.dtype && tensor.dtype != OPENMSA_FLOAT32) {
        const std::string dtype = dtype_name(plan.config.dtype);
        refuse(plan.config.dtype == OPENMSA_FLOAT32 ? dtype : dtype + " or fp32");
      }
      break;
    case Kind::kFigure:
      if (tensor.dtype != OPENMSA_FLOAT32 && !(reference && tensor.dtype == OPENMSA_FLOAT64)) {
        refuse(reference ? "fp32 or fp64" : "fp32");
      }
      break;
  }
}

/// No two elements of an output may share memory: sorted by stride, each dimension steps over all smaller ones.
bool overlaps_itself(const openmsa_tensor& tensor) {
  std::array<int, OPENMSA_MAX_RANK> order = {0, 1, 2, 3};
  const auto end = order.begin() + tensor.rank;  // partial_sort: GCC 12 sees std::sort leave so short an array
  std::partial_sort(order.begin(), end, end, [&](int a, int b) { return tensor.strides[a] < tensor.strides[b]; });
  std::int64_t extent = 1;
  for (int i = 0; i < tensor.rank; ++i) {
    const std::int64_t size = tensor.shape[order[i]], stride = tensor.strides[order[i]];
    if (size <= 1) continue;
    if (stride < extent) return true;
    extent += (size - 1) * stride;
  }
  return false;
}

/// "[2, 3]"
std::string join(const std::int64_t* numbers, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  return text + "]";
}

void check_layout(const Field& field, const openmsa_tensor& tensor, bool is_written) {
  const bool is_one = field.kind == Kind::kScale && is_one_scale(tensor);
  require(is_one || tensor.rank == field.rank, field.name, ": expected rank ", field.rank,
          field.kind == Kind::kScale ? " or [1]" : "", ", got ", tensor.rank);
  for (int d = 0; d < tensor.rank; ++d) {
    require(tensor.shape[d] >= 0, field.name, ": expected shape[", d, "] >= 0, got ", tensor.shape[d]);
    require(tensor.strides[d] >= 0, field.name, ": expected strides[", d, "] >= 0, got ", tensor.strides[d]);
  }
  if (is_empty(tensor)) return;
  require(tensor.data != nullptr, field.name, ": expected data, got NULL");
  const bool has_channels = field.kind != Kind::kInt32 && field.kind != Kind::kCandidate &&
                            field.kind != Kind::kScale && field.kind != Kind::kFigure;
  const int last = tensor.rank - 1;
  require(!has_channels || tensor.strides[last] == 1 || tensor.shape[last] == 1, field.name,
          ": expected stride 1 in the last dimension, got ", tensor.strides[last]);
  const auto bytes = openmsa_dtype_bytes(tensor.dtype);
  require(reinterpret_cast<std::uintptr_t>(tensor.data) % bytes == 0, field.name, ": expected data aligned to ", bytes,
          " bytes, got ", tensor.data);
  if (!bytes_spanned(tensor)) {
    fail(OPENMSA_INVALID_ARGUMENT, field.name, ": expected strides with offsets below 2^63 bytes, got ",
         join(tensor.strides, tensor.rank), " for shape ", join(tensor.shape, tensor.rank));
  }
  require(!is_written || !overlaps_itself(tensor), field.name,
          ": expected strides with which an output does not overlap itself");
}

// ---------------------------------------------------------------------------------- relations between tensors

/// Extents that the tensors of a call must agree on, with the tensor that said so first.
class Extents {
 public:
  explicit Extents(const core::Plan& plan) : plan_(plan) { values_.fill(-1); }

  void unify(const Field& field, const openmsa_tensor& tensor) {
    if (field.kind == Kind::kScale && is_one_scale(tensor)) return;
    for (int d = 0; d < tensor.rank; ++d) {
      const Dim dim = field.shape[d];
      if (dim > Dim::kFree) {
        const std::int64_t expected = planned_extent(plan_, dim);
        require(tensor.shape[d] == expected, field.name, ": expected shape[", d, "] = ", dim_name(dim), " = ", expected,
                ", got ", tensor.shape[d]);
      } else if (dim == Dim::kBatchPlus1) {
        require(tensor.shape[d] >= 1, field.name, ": expected shape[0] = batch + 1 >= 1, got 0");
        set(field, d, Dim::kBatch, tensor.shape[d] - 1);
      } else if (dim != Dim::kNumPages && dim != Dim::kKeyTokens) {  // these differ between caches
        set(field, d, dim, tensor.shape[d]);
      }
    }
  }

  /// The extent, or `fallback` where no tensor has it.
  std::int64_t get(Dim dim, std::int64_t fallback) const {
    const std::int64_t value = values_[static_cast<int>(dim)];
    return value < 0 ? fallback : value;
  }

 private:
  void set(const Field& field, int d, Dim dim, std::int64_t value) {
    std::int64_t& known = values_[static_cast<int>(dim)];
    const char*& from = from_[static_cast<int>(dim)];
    require(known < 0 || known == value, field.name, ": expected ", dim_name(dim), " = ", known, " as in ",
            known < 0 ? "" : from, ", got ", value, " from shape[", d, "]");
    if (known < 0) from = field.name;
    known = value;
  }

  const core::Plan& plan_;
  std::array<std::int64_t, static_cast<int>(Dim::kFree)> values_;
  std::array<const char*, static_cast<int>(Dim::kFree)> from_{};
};

void check_presence(const Operation& operation, const Field& field, std::uint32_t id, const openmsa_tensor& tensor) {
  const FieldSet required = operation.reads | operation.writes;
  const FieldSet allowed = required | operation.may_read | operation.may_write;
  require(present(tensor) || !contains(required, id), field.name, ": required by ", operation.name, ", got none");
  require(!present(tensor) || contains(allowed, id), field.name, ": not used by ", operation.name,
          " with this plan; expected it absent, got a tensor");
}

/// "d_index_q, d_index_k, kl_loss"
std::string names_of(FieldSet set) {
  std::string names;
  for (std::uint32_t id = 0; id < fields().size(); ++id) {
    if (!contains(set, id)) continue;
    if (!names.empty()) names += ", ";
    names += fields()[id].name;
  }
  return names;
}

/// The keys that a scale belongs to.
const Field& scaled_keys(const core::Plan& plan, const Field& scale) {
  TensorMember keys = plan.is_paged() ? &openmsa_tensors::index_k_cache : &openmsa_tensors::index_k;
  if (scale.member == &openmsa_tensors::k_scale) keys = &openmsa_tensors::k_cache;
  if (scale.member == &openmsa_tensors::v_scale) keys = &openmsa_tensors::v_cache;
  return fields()[id_of(keys)];
}

/// A scale comes with its keys and has one number, or one per token of them; that of index keys one per page of them
/// where a kv_block has one.
void check_scale(const core::Plan& plan, const Operation& operation, const openmsa_tensors& tensors,
                 const Field& field) {
  const Field& keys_field = scaled_keys(plan, field);
  const openmsa_tensor &scale = tensors.*field.member, &keys = tensors.*keys_field.member;
  require(present(keys), keys_field.name, ": required by ", operation.name, " with ", field.name, ", got none");
  if (is_one_scale(scale)) return;
  const int last = field.rank - 1;
  const bool is_per_block = plan.has_block_scales() && field.member == &openmsa_tensors::index_k_scale;
  const std::int64_t count = keys.shape[0] * (plan.is_paged() && !is_per_block ? plan.config.page_size : 1);
  const char* const what = is_per_block      ? "num_pages of "
                           : plan.is_paged() ? "num_pages * page_size of "
                                             : "total_k of ";
  require(scale.shape[last] == count, field.name, ": expected [1] or shape[", last, "] = ", what, keys_field.name,
          " = ", count, ", got ", scale.shape[last]);
}

/// A scale of all keys is read, also where those of tokens are written.
bool is_written(const Operation& operation, std::uint32_t id, const openmsa_tensor& tensor) {
  if (fields()[id].kind == Kind::kScale && is_one_scale(tensor)) return false;
  return contains(operation.writes | operation.may_write, id);
}

/// Refuses an output that starts at the very address of another tensor: the mistake that views make easy. Interleaved
/// views (K and V as halves of one buffer) overlap as ranges and are fine.
void check_aliases(const Operation& operation, const openmsa_tensors& tensors) {
  for (std::uint32_t a = 0; a < fields().size(); ++a) {
    const openmsa_tensor& output = tensors.*fields()[a].member;
    if (!is_written(operation, a, output) || !present(output) || is_empty(output)) continue;
    for (std::uint32_t b = 0; b < fields().size(); ++b) {
      const openmsa_tensor& other = tensors.*fields()[b].member;
      if (a == b || !present(other) || is_empty(other)) continue;
      require(output.data != other.data, fields()[a].name, ": expected memory of its own, got that of ",
              fields()[b].name);
    }
  }
}

/// Without a max_total_k of its own, a plan bounds the keys of all sequences where they take workspace.
void check_total_k(const core::Plan& plan, std::int64_t total_k) {
  if (plan.config.max_total_k == 0 && !core::is_device(plan.config.backend)) return;
  require(total_k <= plan.max_total_k, "total_k: expected at most the plan's max_total_k = ", plan.max_total_k,
          ", got ", total_k);
}

// --------------------------------------------------------------------------------------------------- values

void check_prefix_sums(const char* name, const openmsa_tensor& tensor, const char* total_name, std::int64_t total) {
  const auto at = [&](std::int64_t i) { return std::int64_t{element<std::int32_t>(tensor, i)}; };
  const std::int64_t batch = tensor.shape[0] - 1;
  require(at(0) == 0, name, ": expected to start with 0, got ", at(0));
  for (std::int64_t b = 0; b < batch; ++b) {
    require(at(b + 1) >= at(b), name, ": expected increasing sums, got ", at(b), " then ", at(b + 1), " at entry ",
            b + 1);
  }
  require(at(batch) <= total, name, ": expected to end at or below ", total_name, " = ", total, ", got ", at(batch));
}

void check_lengths(const Problem& problem) {
  const auto& config = problem.plan.config;
  const auto& tensors = problem.tensors;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t length = problem.sequence(b).seqlen_k;
    const char* name = present(tensors.seqlens_k)      ? "seqlens_k"
                       : present(tensors.cu_seqlens_k) ? "cu_seqlens_k"
                                                       : "total_k";
    require(length >= 0, name, ": expected lengths >= 0, got ", length, " for sequence ", b);
    require(length <= config.max_seqlen_k, name, ": expected at most the plan's max_seqlen_k = ", config.max_seqlen_k,
            " keys, got ", length, " for sequence ", b);
  }
}

void check_pages(const Problem& problem, std::int64_t num_pages) {
  const std::int64_t page_size = problem.plan.config.page_size;
  const std::int64_t max_pages = problem.tensors.block_table.shape[1];
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const Sequence sequence = problem.sequence(b);
    const std::int64_t used = ceil_div(problem.plan.held_keys(sequence.seqlen_k), page_size);
    require(used <= max_pages, "block_table: expected at least ", used, " pages for seqlens_k[", b,
            "] = ", sequence.seqlen_k, ", got ", max_pages);
    for (std::int64_t p = 0; p < used; ++p) {
      require(sequence.table(p) >= 0 && sequence.table(p) < num_pages, "block_table: expected page numbers 0 to ",
              num_pages - 1, ", got ", sequence.table(p), " at [", b, ", ", p, "]");
    }
  }
}

/// A row of topk_indices: different block numbers inside the sequence, then -1.
void check_topk_row(const Problem& problem, std::int64_t head, std::int64_t row, std::int64_t num_blocks) {
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  std::array<std::int32_t, 64> seen;
  std::int64_t count = 0;
  for (std::int64_t slot = 0; slot < indices.shape[2]; ++slot) {
    const std::int32_t block = element<std::int32_t>(indices, head, row, slot);
    const auto where = [&] {
      return " at [" + std::to_string(head) + ", " + std::to_string(row) + ", " + std::to_string(slot) + "]";
    };
    if (block == -1) continue;
    if (block < 0 || block >= num_blocks) {
      fail(OPENMSA_INVALID_ARGUMENT, "topk_indices: expected -1 or a kv_block below ", num_blocks, ", got ", block,
           where());
    }
    if (count != slot) fail(OPENMSA_INVALID_ARGUMENT, "topk_indices: expected only -1 after -1, got ", block, where());
    if (std::find(seen.begin(), seen.begin() + count, block) != seen.begin() + count) {
      fail(OPENMSA_INVALID_ARGUMENT, "topk_indices: expected different kv_blocks in a row, got ", block, " twice",
           where());
    }
    seen[count++] = block;
  }
}

void check_topk_indices(const Problem& problem) {
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const Sequence sequence = problem.sequence(b);
    const std::int64_t num_blocks = ceil_div(sequence.seqlen_k, problem.plan.config.block_size);
    for (std::int64_t head = 0; head < problem.plan.config.num_heads_kv; ++head) {
      for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
        check_topk_row(problem, head, sequence.q_begin + t, num_blocks);
      }
    }
  }
}

/// " at [shard, head, row, slot]" of all_candidates.
std::string candidate_place(std::int64_t shard, std::int64_t head, std::int64_t row, std::int64_t slot) {
  const std::int64_t place[] = {shard, head, row, slot};
  return " at " + join(place, 4);
}

/// A shard's candidates of a row, as openmsa_select_candidates writes them: different kv_blocks of the shard that compete,
/// descending, then none.
void check_candidate_row(const Problem& problem, std::int64_t shard, std::int64_t head, std::int64_t row,
                         const core::Candidates& competing) {
  const openmsa_tensor& all = problem.tensors.all_candidates;
  std::array<std::int32_t, 64> seen;
  std::int64_t count = 0;
  core::Ranked last = std::numeric_limits<core::Ranked>::max();
  for (std::int64_t slot = 0; slot < all.shape[3]; ++slot) {
    const auto candidate = element<core::Ranked>(all, shard, head, row, slot);
    const std::int32_t block = core::block_of(candidate);
    const auto refuse = [&](const std::string& expected, const std::string& got) {
      fail(OPENMSA_INVALID_ARGUMENT, "all_candidates: expected ", expected, ", got ", got,
           candidate_place(shard, head, row, slot));
    };
    if (slot > 0 && candidate >= last && candidate != core::kNoCandidate) refuse("descending rows", "a greater one");
    last = candidate;
    if (candidate == core::kNoCandidate) continue;
    const std::string name = "kv_block " + std::to_string(block);
    if (competing.init == competing.end) refuse("no candidate, where none competes", name);
    if (block < competing.init || block >= competing.end) {
      refuse("kv_blocks from " + std::to_string(competing.init) + " to " + std::to_string(competing.end - 1), name);
    }
    if (block % problem.plan.config.shard_count != shard) refuse("kv_blocks of shard " + std::to_string(shard), name);
    if (std::find(seen.begin(), seen.begin() + count, block) != seen.begin() + count) {
      refuse("different kv_blocks in a row", name + " twice");
    }
    seen[count++] = block;
  }
}

void check_candidates(const Problem& problem) {
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const Sequence sequence = problem.sequence(b);
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      const core::Candidates competing(problem.plan, sequence.position(t));
      for (std::int64_t head = 0; head < problem.plan.config.num_heads_kv; ++head) {
        for (std::int64_t shard = 0; shard < problem.plan.config.shard_count; ++shard) {
          check_candidate_row(problem, shard, head, sequence.q_begin + t, competing);
        }
      }
    }
  }
}

void check_score_columns(const Problem& problem) {
  const std::int64_t columns = problem.tensors.block_scores.shape[2];
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t num_blocks = ceil_div(problem.sequence(b).seqlen_k, problem.plan.config.block_size);
    require(columns >= num_blocks, "block_scores: expected at least ", num_blocks, " columns for sequence ", b,
            ", got ", columns);
  }
}

/// New keys and their caches come together: k and v, index_k, or all of them.
void check_appended(const openmsa_tensors& tensors) {
  const bool has_index = present(tensors.index_k) || present(tensors.index_k_cache);
  const bool has_kv = present(tensors.k) || present(tensors.v) || present(tensors.k_cache) || present(tensors.v_cache);
  const auto require_with = [&](const openmsa_tensor& tensor, const char* name, const char* with) {
    require(present(tensor), name, ": required by openmsa_append_kv", with, ", got none");
  };
  if (has_kv || !has_index) {
    for (const auto member :
         {&openmsa_tensors::k, &openmsa_tensors::v, &openmsa_tensors::k_cache, &openmsa_tensors::v_cache}) {
      require_with(tensors.*member, fields()[id_of(member)].name,
                   has_index ? " with any of k, v and their caches" : "");
    }
  }
  if (present(tensors.index_k)) require_with(tensors.index_k_cache, "index_k_cache", " with index_k");
  if (present(tensors.index_k_cache)) require_with(tensors.index_k, "index_k", " with index_k_cache");
}

/// New tokens must fit in front of the end of their sequence. Padding (seqlens_k = 0) is skipped.
void check_append(const Problem& problem) {
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const Sequence sequence = problem.sequence(b);
    require(sequence.seqlen_k == 0 || sequence.seqlen_q <= sequence.seqlen_k, "seqlens_k: expected at least the ",
            sequence.seqlen_q, " new tokens of sequence ", b, ", got ", sequence.seqlen_k);
  }
}

/// What a plan of a shard serves.
void check_shard(const core::Plan& plan, const Operation& operation) {
  if (!operation.has(kServesShards)) {
    fail(OPENMSA_UNSUPPORTED, "shard_count: ", operation.name, " works on whole sequences, got one of ",
         plan.config.shard_count, " shards");
  }
  if (!operation.has(kWithoutKeys) && !plan.is_paged()) {
    fail(OPENMSA_UNSUPPORTED, "page_size: ", operation.name, " works on pages where there are shards, got page_size 0");
  }
}

void check_values(const Operation& operation, const Problem& problem, std::int64_t total_k) {
  const openmsa_tensors& tensors = problem.tensors;
  if (present(tensors.cu_seqlens_q)) {
    check_prefix_sums("cu_seqlens_q", tensors.cu_seqlens_q, "total_q", problem.total_q);
  }
  if (present(tensors.cu_seqlens_k)) {
    check_prefix_sums("cu_seqlens_k", tensors.cu_seqlens_k, "total_k", total_k);
  }
  check_lengths(problem);
  if (present(tensors.block_table)) {
    std::int64_t num_pages = INT64_MAX;
    for (const auto* cache : {&tensors.k_cache, &tensors.v_cache, &tensors.index_k_cache}) {
      if (present(*cache)) num_pages = std::min(num_pages, cache->shape[0]);
    }
    check_pages(problem, num_pages);
  }
  if (present(tensors.topk_indices) && contains(operation.reads | operation.may_read, &openmsa_tensors::topk_indices)) {
    check_topk_indices(problem);
  }
  if (present(tensors.block_scores)) check_score_columns(problem);
  if (present(tensors.all_candidates)) check_candidates(problem);
}

}  // namespace

Problem check(const core::Plan& plan, openmsa_op op, const openmsa_tensors& tensors) {
  const Operation operation = api::operation(op, plan.config);
  if (plan.is_sharded()) check_shard(plan, operation);
  if (operation.has(kContiguousOnly) && plan.is_paged()) {
    fail(OPENMSA_UNSUPPORTED, "page_size: ", operation.name, " works on contiguous keys, got pages of ",
         plan.config.page_size);
  }
  if (operation.has(kContiguousOnly) && contains(operation.reads, &openmsa_tensors::index_k) && plan.has_fp8_index()) {
    fail(OPENMSA_UNSUPPORTED, "index_dtype: ", operation.name,
         " works on index keys of the plan's dtype = ", dtype_name(plan.config.dtype), ", got e4m3");
  }
  require(op != OPENMSA_OP_APPEND_KV || plan.is_paged(),
          "page_size: openmsa_append_kv expects a plan with pages, got page_size 0");

  Extents extents(plan);
  bool writes_any = !operation.has(kAnyOutput);
  for (std::uint32_t id = 0; id < fields().size(); ++id) {
    const Field& field = fields()[id];
    const openmsa_tensor& tensor = tensors.*field.member;
    check_presence(operation, field, id, tensor);
    if (!present(tensor)) continue;
    check_dtype(plan, field, tensor);
    check_layout(field, tensor, is_written(operation, id, tensor));
    extents.unify(field, tensor);
    if (field.kind == Kind::kScale) check_scale(plan, operation, tensors, field);
    writes_any |= contains(operation.may_write, id);
  }
  if (!writes_any) {
    fail(OPENMSA_INVALID_ARGUMENT, operation.name, ": expected at least one of ", names_of(operation.may_write),
         ", got none");
  }
  check_aliases(operation, tensors);
  if (op == OPENMSA_OP_APPEND_KV) check_appended(tensors);

  // The rows that append_kv stores are new tokens: its k and v count like queries.
  const Dim rows = op == OPENMSA_OP_APPEND_KV ? Dim::kTotalK : Dim::kTotalQ;
  Problem problem{plan, tensors, extents.get(Dim::kBatch, 1), extents.get(rows, 0)};
  require(problem.total_q <= plan.config.max_total_q,
          "total_q: expected at most the plan's max_total_q = ", plan.config.max_total_q, ", got ", problem.total_q);
  require(problem.batch <= plan.config.max_batch,
          "batch: expected at most the plan's max_batch = ", plan.config.max_batch, ", got ", problem.batch);
  require(problem.batch <= 1 || present(tensors.cu_seqlens_q), "cu_seqlens_q: required for a batch of ", problem.batch,
          " sequences, got none");
  require(problem.batch == 1 || plan.is_paged() || operation.has(kWithoutKeys) || present(tensors.cu_seqlens_k),
          "cu_seqlens_k: required for a batch of ", problem.batch, " sequences, got none");
  if (operation.has(kBoundsTotalK)) check_total_k(plan, extents.get(Dim::kTotalK, 0));
  if (core::is_device(plan.config.backend)) return problem;
  check_values(operation, problem, extents.get(Dim::kTotalK, 0));
  if (op == OPENMSA_OP_APPEND_KV) check_append(problem);
  return problem;
}

void check_outside(const openmsa_tensors& tensors, const void* workspace, std::size_t bytes) {
  for (const Field& field : fields()) {
    const openmsa_tensor& tensor = tensors.*field.member;
    if (!present(tensor) || is_empty(tensor)) continue;
    require(!shares_memory(tensor, workspace, bytes), field.name, ": expected memory outside the workspace, got ",
            tensor.data, " in the ", bytes, " bytes at ", workspace);
  }
}

}  // namespace openmsa::api
