// Calls of any shape: run within the memory that their tensors name, or refused. Every tensor is a heap block of
// exactly the extent that its shape and strides describe, so that AddressSanitizer sees one step beyond it.
#include <fuzzer/FuzzedDataProvider.h>
#include <openmsa/openmsa.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

namespace {

constexpr std::int64_t kMaxBytes = 1 << 20;  // of one tensor

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};
using Memory = std::unique_ptr<void, Free>;

class CallMaker {
 public:
  CallMaker(const std::uint8_t* data, std::size_t size) : source_(data, size) {}

  openmsa_config config() {
    openmsa_config c;
    openmsa_config_init(&c);
    c.backend = source_.PickValueInArray({OPENMSA_BACKEND_CPU, OPENMSA_BACKEND_REFERENCE});
    c.dtype = source_.PickValueInArray({OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16});
    c.num_heads_kv = rarely_any(1, 2);
    c.num_heads_q = source_.ConsumeBool() ? 2 * std::clamp(c.num_heads_kv, 0, 8) : rarely_any(1, 8);
    c.head_dim = dimension();
    c.index_dim = dimension();
    c.block_size = 1 << source_.ConsumeIntegralInRange(2, 5);
    c.topk = rarely_any(1, 4);
    c.num_init_blocks = rarely_any(0, 2);
    c.num_local_blocks = rarely_any(0, 2);
    c.page_size = source_.ConsumeBool() ? c.block_size >> source_.ConsumeIntegralInRange(0, 2) : 0;
    c.max_batch = rarely_any(1, 4);
    c.max_total_q = rarely_any(1, 16);
    c.max_seqlen_k = rarely_any(1, 64);
    c.num_threads = 1;
    c.kv_dtype = c.page_size > 0 || rarely() ? key_dtype() : openmsa_dtype{};
    c.index_dtype = key_dtype();
    c.max_total_k = rarely() ? rarely_any(0, 40) : 0;
    const bool is_fp8 = c.index_dtype == OPENMSA_FLOAT8_E4M3;
    const std::int32_t rounding = is_fp8 ? source_.ConsumeIntegralInRange(0, 2) : 0;
    c.index_q_rounding = static_cast<openmsa_index_q_rounding>(rarely_any(rounding, rounding));
    const std::int32_t per_block = is_fp8 && c.page_size > 0 && source_.ConsumeBool() ? 1 : 0;
    c.index_scale_per_block = rarely_any(per_block, per_block);
    c.shard_count = source_.ConsumeBool() ? rarely_any(0, 3) : 0;
    c.shard_rank = c.shard_count > 1 || rarely() ? rarely_any(0, 2) : 0;
    return c;
  }

  openmsa_tensors tensors(const openmsa_config& c, openmsa_op op) {
    const std::int64_t batch = rarely_any(1, 3), total_q = rarely_any(0, 12), total_k = rarely_any(0, 40);
    const std::int64_t pages = rarely_any(1, 8), page = c.page_size, per_sequence = rarely_any(0, 8);
    const std::int64_t hq = c.num_heads_q, h = c.num_heads_kv, d = c.head_dim, di = c.index_dim;
    const bool paged = page > 0, appends = op == OPENMSA_OP_APPEND_KV, topk = op == OPENMSA_OP_TOPK;
    const bool candidates = op == OPENMSA_OP_SELECT_CANDIDATES, merges = op == OPENMSA_OP_MERGE_CANDIDATES;
    const bool parts = op == OPENMSA_OP_MERGE_PARTIALS, without_keys = topk || merges || parts;
    const bool selects = candidates || is(op, {OPENMSA_OP_BLOCK_SCORES, OPENMSA_OP_SELECT_BLOCKS});
    const std::int64_t shards = std::clamp(c.shard_count, 1, 8);
    const bool attends = is(op, {OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_DENSE_ATTENTION});
    const bool backward = is(op, {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_OP_DENSE_ATTENTION_BACKWARD,
                                  OPENMSA_OP_MSA_ATTENTION_BACKWARD});
    const bool kl = is(op, {OPENMSA_OP_KL_LOSS, OPENMSA_OP_MSA_ATTENTION_BACKWARD});
    const bool recall = op == OPENMSA_OP_BLOCK_RECALL;
    const bool indexed = selects || kl || op == OPENMSA_OP_MSA_ATTENTION;
    const bool chosen = topk || merges || kl || recall ||
                        is(op, {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION,
                                OPENMSA_OP_SPARSE_ATTENTION_BACKWARD});
    const bool has_keys = attends || backward || kl || recall || appends;
    const bool is_fp8 = c.kv_dtype == OPENMSA_FLOAT8_E4M3, is_index_fp8 = c.index_dtype == OPENMSA_FLOAT8_E4M3;
    const openmsa_dtype kv_dtype = is_fp8 ? c.kv_dtype : c.dtype, index_dtype = is_index_fp8 ? c.index_dtype : c.dtype;
    const std::int64_t slots = pages * page;
    openmsa_tensors t;
    openmsa_tensors_init(&t);
    t.cu_seqlens_q = maybe(true, OPENMSA_INT32, {batch + 1});
    t.cu_seqlens_k = maybe(!paged && !without_keys, OPENMSA_INT32, {batch + 1});
    t.seqlens_k = maybe((paged && !parts) || topk || merges, OPENMSA_INT32, {batch});
    t.block_table = maybe(paged && !without_keys, OPENMSA_INT32, {batch, per_sequence});
    t.q = maybe(attends || backward || kl || recall, c.dtype, {total_q, hq, d});
    t.k = maybe(has_keys && (!paged || appends), c.dtype, {appends ? total_q : total_k, h, d});
    t.v = maybe((attends && !paged) || backward || appends, c.dtype, {appends ? total_q : total_k, h, d});
    const bool is_cast = c.index_q_rounding == OPENMSA_INDEX_Q_CAST && source_.ConsumeBool();
    t.index_q = maybe(indexed, is_cast ? OPENMSA_FLOAT8_E4M3 : c.dtype, {total_q, h, di});
    t.index_k = maybe((indexed && !paged) || appends, paged ? c.dtype : index_dtype, {appends ? total_q : total_k, di});
    t.k_cache = maybe(paged && (attends || appends), kv_dtype, {pages, page, h, d});
    t.v_cache = maybe(paged && (attends || appends), kv_dtype, {pages, page, h, d});
    t.index_k_cache = maybe(paged && (indexed || appends), index_dtype, {pages, page, di});
    t.k_scale = scale(is_fp8 && paged && (attends || appends), {h, slots});
    t.v_scale = scale(is_fp8 && paged && (attends || appends), {h, slots});
    t.index_k_scale = scale(is_index_fp8 && (indexed || appends), {c.index_scale_per_block != 0 ? pages
                                                                   : paged                      ? slots
                                                                                                : total_k});
    t.block_scores = maybe(topk || op == OPENMSA_OP_BLOCK_SCORES, OPENMSA_FLOAT32, {h, total_q, rarely_any(1, 16)});
    t.topk_indices = maybe(chosen, OPENMSA_INT32, {h, total_q, c.topk});
    t.o = maybe(attends || backward || parts, c.dtype, {total_q, hq, d});
    t.lse = maybe(attends || backward || kl || parts, OPENMSA_FLOAT32, {total_q, hq});
    t.d_o = maybe(backward, c.dtype, {total_q, hq, d});
    t.d_q = maybe(backward, OPENMSA_FLOAT32, {total_q, hq, d});
    t.d_k = maybe(backward, OPENMSA_FLOAT32, {total_k, h, d});
    t.d_v = maybe(backward, OPENMSA_FLOAT32, {total_k, h, d});
    t.d_index_q = maybe(kl, OPENMSA_FLOAT32, {total_q, h, di});
    t.d_index_k = maybe(kl, OPENMSA_FLOAT32, {total_k, di});
    t.kl_loss = maybe(kl, OPENMSA_FLOAT32, {1});
    t.block_recall = maybe(recall, OPENMSA_FLOAT32, {h, total_q});
    t.score_recall = maybe(recall, OPENMSA_FLOAT32, {h, total_q});
    t.d_lse = optional(backward, {total_q, hq});
    t.kl_weights = optional(kl, {total_q});
    t.candidates = maybe(candidates, OPENMSA_INT64, {h, total_q, c.topk});
    t.all_candidates = maybe(merges, OPENMSA_INT64, {shards, h, total_q, c.topk});
    t.partial_o = maybe(parts, source_.ConsumeBool() ? OPENMSA_FLOAT32 : c.dtype, {shards, total_q, hq, d});
    t.partial_lse = maybe(parts, OPENMSA_FLOAT32, {shards, total_q, hq});
    return t;
  }

  openmsa_op op() { return static_cast<openmsa_op>(source_.ConsumeIntegralInRange<int>(0, OPENMSA_OP_COUNT)); }

 private:
  /// In [low, high], and now and then any number at all.
  std::int32_t rarely_any(std::int32_t low, std::int32_t high) {
    if (rarely()) return source_.ConsumeIntegral<std::int32_t>();
    return source_.ConsumeIntegralInRange(low, high);
  }

  bool rarely() { return source_.ConsumeIntegral<std::uint8_t>() == 255; }

  /// 0 stands for the plan's dtype.
  openmsa_dtype key_dtype() {
    if (rarely()) return static_cast<openmsa_dtype>(source_.ConsumeIntegralInRange(0, 8));
    return source_.ConsumeBool() ? OPENMSA_FLOAT8_E4M3 : openmsa_dtype{};
  }

  /// Absent, one, or per token.
  openmsa_tensor scale(bool belongs, std::vector<std::int64_t> per_token) {
    if (belongs && source_.ConsumeBool()) return {};
    return maybe(belongs, OPENMSA_FLOAT32, source_.ConsumeBool() ? std::vector<std::int64_t>{1} : per_token);
  }

  /// None, a kv_block with a score, and now and then any number at all.
  std::int64_t candidate() {
    if (rarely()) return source_.ConsumeIntegral<std::int64_t>();
    if (source_.ConsumeBool()) return std::numeric_limits<std::int64_t>::min();
    return source_.ConsumeIntegralInRange(-2, 2) * (std::int64_t{1} << 32) + 0xffffffff - rarely_any(0, 8);
  }

  openmsa_tensor optional(bool belongs, const std::vector<std::int64_t>& shape) {
    return belongs && source_.ConsumeBool() ? openmsa_tensor{} : maybe(belongs, OPENMSA_FLOAT32, shape);
  }

  std::int32_t dimension() { return source_.ConsumeBool() ? 8 : rarely_any(0, 24); }

  static bool is(openmsa_op op, std::initializer_list<openmsa_op> any) {
    return std::find(any.begin(), any.end(), op) != any.end();
  }

  /// The tensor as it should be, with a flaw, or absent; now and then where it does not belong.
  openmsa_tensor maybe(bool belongs, openmsa_dtype dtype, std::vector<std::int64_t> shape) {
    openmsa_tensor t{};
    const auto flaw = source_.ConsumeIntegral<std::uint8_t>();
    if (belongs == (flaw % 32 == 31)) return t;
    t.dtype = flaw == 0 ? static_cast<openmsa_dtype>(source_.ConsumeIntegralInRange(0, 8)) : dtype;
    t.rank = flaw == 4 ? source_.ConsumeIntegralInRange(-1, 5) : static_cast<std::int32_t>(shape.size());
    if (flaw == 8) shape[source_.ConsumeIntegralInRange<std::size_t>(0, shape.size() - 1)] = rarely_any(-1, 64);
    std::copy(shape.begin(), shape.end(), t.shape);
    std::int64_t stride = 1;
    for (int d = static_cast<int>(shape.size()) - 1; d >= 0; --d) {
      t.strides[d] = flaw == 12 ? rarely_any(0, 64) : stride;
      stride *= std::clamp<std::int64_t>(shape[static_cast<std::size_t>(d)], 1, 4096) + (flaw == 16 ? 3 : 0);
      stride = std::min(stride, kMaxBytes);
    }
    allocate(t);
    return t;
  }

  void allocate(openmsa_tensor& t) {
    const auto element = static_cast<std::int64_t>(openmsa_dtype_bytes(t.dtype));
    std::int64_t last = 0;  // element
    bool is_empty = false;
    for (int d = 0; d < std::clamp(t.rank, 0, static_cast<int>(OPENMSA_MAX_RANK)); ++d) {
      is_empty |= t.shape[d] <= 0;
      if (t.shape[d] > 0 && t.shape[d] <= kMaxBytes && t.strides[d] >= 0 && t.strides[d] <= kMaxBytes) {
        last += (t.shape[d] - 1) * t.strides[d];
      } else if (t.shape[d] > 0) {
        last = kMaxBytes;
      }
    }
    const std::int64_t bytes = is_empty ? 0 : (last + 1) * std::max<std::int64_t>(element, 1);
    if (bytes > kMaxBytes) {  // too much to own: no such tensor
      t = {};
      return;
    }
    if (bytes == 0) return;
    void* memory = std::malloc(static_cast<std::size_t>(bytes));
    owned_.emplace_back(memory);
    t.data = memory;
    if (t.dtype == OPENMSA_INT32) {
      auto* values = static_cast<std::int32_t*>(memory);
      for (std::int64_t i = 0; i <= last; ++i) values[i] = rarely_any(-1, 20);
      if (source_.ConsumeBool()) std::sort(values, values + last + 1);  // prefix sums ascend
      if (source_.ConsumeBool()) values[0] = 0;
    } else if (t.dtype == OPENMSA_INT64) {
      auto* values = static_cast<std::int64_t*>(memory);
      for (std::int64_t i = 0; i <= last; ++i) values[i] = candidate();
    } else {
      std::memset(memory, source_.ConsumeIntegral<std::uint8_t>(), static_cast<std::size_t>(bytes));
    }
  }

  FuzzedDataProvider source_;
  std::vector<Memory> owned_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  CallMaker make(data, size);
  const openmsa_config config = make.config();
  openmsa_plan* plan = nullptr;
  if (openmsa_plan_create(&config, &plan) != OPENMSA_SUCCESS) return 0;
  const openmsa_op op = make.op();
  std::size_t bytes = 0;
  if (openmsa_plan_workspace_bytes(plan, op, &bytes) == OPENMSA_SUCCESS && bytes <= 64 << 20) {
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    const Memory memory(rounded == 0 ? nullptr : std::aligned_alloc(64, rounded));
    const openmsa_tensors tensors = make.tensors(config, op);
    const openmsa_status status = openmsa_run(plan, op, &tensors, {memory.get(), bytes, nullptr});
    if (status == OPENMSA_INTERNAL) std::abort();
    if (status != OPENMSA_SUCCESS && openmsa_last_error()[0] == '\0') std::abort();
  }
  openmsa_plan_destroy(plan);
  return 0;
}
