// KL loss and gradients with kv_blocks in the outer loop: each work item is a kv_block and the query rows of one KV head
// that visit it, in ascending order. Steps of 32 queries stream past. Two consumer warpgroups take 64 keys each:
//
//   s_idx^T[64 keys][32 queries]      = index_k index_q^T      both from shared memory
//   d_index_k[64 keys][kIndexDim]    += g^T index_q            g^T from registers
//   d_index_q^T[64 channels][queries] = index_k^T g^T          over all 128 keys, g through shared memory
//
// The teacher's probabilities come from memory, a step ahead (teacher.h). d_index_k stays in registers for the whole item.
// d_index_q leaves with every step, as fixed-point numbers that the copy engine adds to those in memory (params.h).
//
//   barrier           arrivals                         waited on by          guards
//   item_full[i]      warp 0                           all others            the item
//   item_empty[i]     all other warps                  warp 0                all have read it
//   index_k_full[i]   warp 0 + bytes                   consumers             index_k of the item
//   index_k_empty[i]  consumer warps                   warp 0                all products with it are done
//   step_full[i]      lanes of warp 2 or 3, copies     consumers             index_q and StepRows of a step
//   step_empty[i]     consumer warps                   warps 2 and 3         all products with it are done
//   sums_full[i]      consumer warps                   warp 1                d_index_q of a step, in fixed point
//   sums_empty[i]     warp 1                           consumers             it has been read
//   kKeys             256 threads of the consumers     the same              index keys that are not finite are gone;
//                                                                            d_index_k of the item before is in memory
//   kGradients        256 threads of the consumers     the same              g of both is in shared memory
//
// Order of a consumer's products, and what runs beside them: P_idx and g of a step beside d_index_q of the step before and
// s_idx of the next one; d_index_q of the step before goes to shared memory beside d_index_k.
//
// Per step (index_dim 128): products 768 cycles of the tensor cores, 8192 exponentials and logarithms 512 cycles. 8 KB of
// index_q and 8 KB of probabilities come in, 16 KB of d_index_q go out to the L2 cache.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/ptx/turn.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/training/group_sums.cuh"
#include "cuda/sm90/training/kl/load.cuh"

namespace openmsa::cuda::sm90::training::kl {

enum class ConsumerBarrier { kKeys = 1, kGradients = 2 };

/// Keys of the kv_block, the queries that see them and the rest that a thread needs to find its numbers.
struct ConsumerThread {
  int consumer;
  int thread;  // of the warpgroup
  int lane;
  int key;  // the first of two; the other is 8 after it

  __device__ __forceinline__ ConsumerThread(int consumer, int thread)
      : consumer(consumer),
        thread(thread),
        lane(thread % 32),
        key(consumer * kKeys + thread / 32 * 16 + thread % 32 / 4) {}
};

/// Index keys that are not finite, which rows that do not see them would meet as 0 * NaN in d_index_q, become 0. Rows
/// that do see them are NaN by their lse2.
template <class Config>
__device__ __forceinline__ void clean_index_keys(typename Config::Tile::Element* keys, int thread) {
  clear_keys_not_finite<Config::Tile::kIndexDim, Config::kConsumerThreads>(keys, thread);
  sync(ConsumerBarrier::kKeys, Config::kConsumerThreads);
}

/// The teacher's probabilities of a step: of the thread's two keys and its queries, times kTeacherOne.
struct TeacherStep {
  __half2 of[kThreadQueries];
};

/// Reads those of an item step by step.
class TeacherReader {
 public:
  __device__ __forceinline__ TeacherReader(const Params& p, const WorkItem& item, const ConsumerThread& at)
      : visits_(p.teacher.data + p.teacher.first_visit(p.work, item) * kTileKeys + key_pair(at.key)),
        stride_(p.teacher.stride() * kTileKeys),
        last_(item.count - 1) {}

  /// Of the next step; where it has no such query, those of the item's last one.
  __device__ __forceinline__ TeacherStep read(const ConsumerThread& at) {
    TeacherStep step;
#pragma unroll
    for (int i = 0; i < kThreadQueries; ++i) {
      const int query = min(first_ + 2 * (at.lane % 4) + i / 2 * 8 + i % 2, last_);
      step.of[i] = __ldcs(reinterpret_cast<const __half2*>(visits_ + std::int64_t{query} * stride_));
    }
    first_ += kStepQueries;
    return step;
  }

 private:
  const std::uint16_t* visits_;
  std::int32_t stride_;
  std::int32_t last_;
  std::int32_t first_ = 0;  // query of the next step
};

/// A thread's gradients of a step, of two keys, in the columns of the student's scores.
struct StepGradients {
  float g[2][kThreadQueries];         // P_idx - P, times gradient_scale
  float weighted[2][kThreadQueries];  // the same, times the row's weight
};

/// g = P_idx - P of a step; adds the thread's share of the loss, times kTeacherOne / ln 2, to `loss`:
/// sum_j P (log2 P - log2 P_idx). Keys that a query does not see have neither; without kIsMasked all see all.
template <class Config, bool kIsMasked>
__device__ __forceinline__ StepGradients step_gradients(const Params& p, const StepRows& rows,
                                                        const typename Config::Tile::StudentScores& s,
                                                        const TeacherStep& teacher, const ConsumerThread& at,
                                                        float& loss) {
  using namespace cute;
  constexpr float kLog2One = 12;
  static_assert(kTeacherOne == 1 << 12);
  StepGradients out;
  CUTE_UNROLL
  for (int n = 0; n < kThreadQueries / 2; ++n) {
    const int column = 8 * n + 2 * (at.lane % 4);
    const float2 lse2 = *reinterpret_cast<const float2*>(&rows.lse2[column]);
    const float2 weight = *reinterpret_cast<const float2*>(&rows.weight[column]);
    int2 keys{kTileKeys, kTileKeys};
    if constexpr (kIsMasked) keys = *reinterpret_cast<const int2*>(&rows.keys[column]);
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      const float2 pair = __half22float2(teacher.of[2 * n + c]);
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float probability = i == 0 ? pair.x : pair.y, w = c == 0 ? weight.x : weight.y;  // times kTeacherOne
        const bool is_seen = !kIsMasked || at.key + 8 * i < (c == 0 ? keys.x : keys.y);
        const float log2_student = fmaf(s(make_coord(c, i, n), 0, 0), p.index_scale_log2, c == 0 ? -lse2.x : -lse2.y);
        const float g = fmaf(probability, -1 / kTeacherOne, exp2_approx(log2_student)) * Config::kGradientScale;
        out.g[i][2 * n + c] = is_seen ? g : 0;
        out.weighted[i][2 * n + c] = is_seen ? g * w : 0;
        if (is_seen && probability != 0) {  // NaN too
          loss = fmaf(w * probability, log2_approx(probability) - kLog2One - log2_student, loss);
        }
      }
    }
  }
  return out;
}

/// Puts a step's d_index_q into its staging memory, in fixed point.
template <class Config>
__device__ __forceinline__ void stage_index_rows(const typename Config::Tile::IndexRowGradients& d,
                                                 const float* to_fixed, std::int32_t* sums, const ConsumerThread& at) {
  using namespace cute;
  using Tile = typename Config::Tile;
  const int channel = (Tile::kSplitsChannels ? at.consumer * kPanelChannels : 0) + at.thread / 32 * 16 + at.lane / 4;
  const int query = (Tile::kSplitsChannels ? 0 : at.consumer * Tile::kOwnQueries) + 2 * (at.lane % 4);
  std::int32_t* const to = sums + query * Config::kSumStride + channel;
  CUTE_UNROLL
  for (int n = 0; n < Tile::kOwnQueries / 8; ++n) {
    const float2 factors = *reinterpret_cast<const float2*>(&to_fixed[query + 8 * n]);
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      std::int32_t* const two = to + 8 * n * Config::kSumStride + 8 * half;
      two[0] = __float2int_rn(d(make_coord(0, half, n), 0, 0) * factors.x);
      two[Config::kSumStride] = __float2int_rn(d(make_coord(1, half, n), 0, 0) * factors.y);
    }
  }
}

/// Adds an item's d_index_k to those of earlier items of its kv_block. Its turn has come; end_turn() has to follow when
/// they have arrived.
template <class Config>
__device__ __forceinline__ void add_index_keys(const Params& p, const WorkItem& item,
                                               const typename Config::Tile::IndexKeyGradients& d,
                                               const ConsumerThread& at) {
  using namespace cute;
  constexpr int kDim = Config::Tile::kIndexDim;
  const SequenceView view = p.batch.sequence(item.sequence);
  const int first = item.block * p.batch.block_size, keys = min(p.batch.block_size, view.seqlen_k - first);
  const std::int64_t row = std::int64_t{item.head - p.work.first_head} * p.batch.total_k + view.k_row + first;
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int key = at.key + 8 * half;
    if (key >= keys) continue;
    float* const to = p.d_index_k_sums + (row + key) * kDim + 2 * (at.lane % 4);
    CUTE_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      reduce_add(to + 8 * n, {d(make_coord(0, half, n), 0, 0), d(make_coord(1, half, n), 0, 0)});
    }
  }
}

/// A consumer warpgroup: where it stands in the rings, and what it keeps from step to step.
template <class Config>
struct Consumer {
  using Tile = typename Config::Tile;
  using Student = typename Tile::StudentScores;

  const Params& p;
  typename Config::Storage& storage;
  const ConsumerThread at;
  PipelineState<Config::kIndexKeyStages> keys;
  PipelineState<Config::kStepStages> started, steps;
  PipelineState<Config::kSumStages> sums;
  int turn = 0;           // of the two buffers of g
  int* ticket = nullptr;  // of the item before
  float loss;             // of an item
  int stage_before;       // of the step before, whose d_index_q is still to leave; -1: none
  typename Tile::IndexKeyGradients d_index_k;
  typename Tile::IndexRowGradients d_index_q;

  __device__ __forceinline__ Consumer(const Params& p, typename Config::Storage& storage, int consumer, int thread)
      : p(p), storage(storage), at(consumer, thread) {}

  __device__ __forceinline__ bool is_first_thread() const { return at.consumer == 0 && at.thread == 0; }

  __device__ __forceinline__ void release(std::uint64_t* empty) const {
    if (at.lane == 0) EmptyBarrier::arrive(empty);
  }

  /// Starts s_idx^T of the next step.
  __device__ __forceinline__ void start_student(Student& s) {
    FullBarrier::wait(&storage.step_full[started.stage], started.phase);
    cutlass::arch::fence_view_async_shared();  // index_q was written by plain copies
    Tile::start_student(storage.index_k[keys.stage], storage.index_q[started.stage], s, at.consumer, at.thread);
    started.advance();
  }

  /// Gives d_index_q of the step before, all of whose products have ended, to the adder.
  __device__ __forceinline__ void finish_step_before() {
    cute::warpgroup_fence_operand(d_index_q);
    if (stage_before < 0) return;
    EmptyBarrier::wait(&storage.sums_empty[sums.stage], sums.phase ^ 1);
    stage_index_rows<Config>(d_index_q, storage.rows[stage_before].to_fixed, storage.sums[sums.stage], at);
    cutlass::arch::fence_view_async_shared();
    __syncwarp();
    release(&storage.sums_full[sums.stage]);
    release(&storage.step_empty[stage_before]);
    sums.advance();
  }

  /// A step, whose s_idx^T `student` is there; puts that of the next one, computed in s, into its place.
  template <bool kIsLast>
  __device__ __forceinline__ void run_step(Student& s, Student& student, const TeacherStep& teacher) {
    using namespace cute;
    if (!kIsLast) start_student(s);
    const StepRows& rows = storage.rows[steps.stage];
    const StepGradients gradients = rows.is_masked ? step_gradients<Config, true>(p, rows, student, teacher, at, loss)
                                                   : step_gradients<Config, false>(p, rows, student, teacher, at, loss);
    Tile::store_gradients(Tile::round(gradients.g), storage.gradients[turn], at.consumer, at.thread);
    cutlass::arch::fence_view_async_shared();
    warpgroup_wait<0>();
    if (!kIsLast) warpgroup_fence_operand(s);
    Tile::start_index_keys(Tile::round(gradients.weighted), storage.index_q[steps.stage], d_index_k, stage_before >= 0,
                           at.thread);
    finish_step_before();
    sync(ConsumerBarrier::kGradients, Config::kConsumerThreads);
    Tile::start_index_rows(storage.index_k[keys.stage], storage.gradients[turn], d_index_q, at.consumer, at.thread);
    stage_before = steps.stage;
    steps.advance();
    turn ^= 1;
    if (!kIsLast) copy(s, student);
  }

  /// All steps of an item.
  __device__ __forceinline__ void run(const WorkItem& item) {
    using namespace cute;
    TeacherReader reader(p, item, at);
    TeacherStep teacher[2] = {reader.read(at), reader.read(at)};  // of this step and the next
    FullBarrier::wait(&storage.index_k_full[keys.stage], keys.phase);
    __threadfence();  // d_index_k of the item before has been added
    clean_index_keys<Config>(storage.index_k[keys.stage], at.consumer * 128 + at.thread);
    end_turn_before();

    loss = 0;
    stage_before = -1;
    Student s, student;
    start_student(s);
    warpgroup_wait<0>();
    warpgroup_fence_operand(s);
    copy(s, student);
    for (int left = item.count; left > kStepQueries; left -= kStepQueries) {
      const TeacherStep now = teacher[0];
      teacher[0] = teacher[1];
      teacher[1] = reader.read(at);
      run_step<false>(s, student, now);
    }
    run_step<true>(s, student, teacher[0]);
    warpgroup_wait<0>();
    warpgroup_fence_operand(d_index_k);
    finish_step_before();
    release(&storage.index_k_empty[keys.stage]);
    keys.advance();
    finish_loss(loss / kTeacherOne);
    if (is_first_thread()) wait_for_turn(p.work.tickets + item.ticket, item.order);
    __syncwarp();
    sync(ConsumerBarrier::kGradients, Config::kConsumerThreads);  // the others' turn too
    if (is_first_thread()) write_loss(item);
    add_index_keys<Config>(p, item, d_index_k, at);
    ticket = p.work.tickets + item.ticket;
  }

  /// After all items.
  __device__ __forceinline__ void finish() const {
    __threadfence();
    sync(ConsumerBarrier::kKeys, Config::kConsumerThreads);
    end_turn_before();
  }

  /// All threads have added d_index_k of the item before.
  __device__ __forceinline__ void end_turn_before() const {
    if (is_first_thread() && ticket != nullptr) end_turn(ticket);
  }

  /// The sum over a warp, in the same order every time.
  __device__ __forceinline__ void finish_loss(float loss) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) loss += __shfl_xor_sync(kFullWarp, loss, distance);
    if (at.lane == 0) storage.loss[at.consumer * 4 + at.thread / 32] = loss;
  }
  __device__ __forceinline__ void write_loss(const WorkItem& item) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < Config::kConsumerThreads / 32; ++warp) sum += storage.loss[warp];
    p.item_loss[item.number] = sum;
  }
};

/// Adds d_index_q of all steps to those in memory, one copy per query; a warp.
template <class Config>
__device__ __forceinline__ void add_index_rows(const Params& p, typename Config::Storage& storage) {
  constexpr int kDim = Config::Tile::kIndexDim;
  const int lane = threadIdx.x % 32;
  PipelineState<Config::kSumStages> ring;
  for_each_item(storage, [&](const WorkItem& item) {
    std::int32_t row = p.work.visited_row(item, lane);
    for (int begin = 0; begin < item.count; begin += kStepQueries, ring.advance()) {
      const std::int32_t next = p.work.visited_row(item, begin + kStepQueries + lane);
      FullBarrier::wait(&storage.sums_full[ring.stage], ring.phase);
      if (row >= 0) {
        bulk_add(p.d_index_q_sums + p.work.place(item.head, row) * kDim,
                 storage.sums[ring.stage] + lane * Config::kSumStride, kDim * static_cast<int>(sizeof(std::int32_t)));
      }
      cute::tma_store_arrive();
      cute::tma_store_wait<0>();
      __syncwarp();
      if (lane == 0) EmptyBarrier::arrive(&storage.sums_empty[ring.stage]);
      row = next;
    }
  });
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    kl_kernel(const Params p, const __grid_constant__ CUtensorMap map_index_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  constexpr int kConsumerWarps = Config::kConsumerThreads / 32;
  init_barriers([&] {
    init_ring(storage.item_full, storage.item_empty, kConsumerWarps + 1 + Config::kStepWarps);
    init_ring(storage.index_k_full, storage.index_k_empty, kConsumerWarps);
    init_ring(storage.step_full, storage.step_empty, kConsumerWarps, 2 * 32);
    init_ring(storage.sums_full, storage.sums_empty, 1, kConsumerWarps);
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 56 x 128 for producers and adder, 224 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) produce_items<Config>(p, map_index_k, storage);
    if (warp == 1) add_index_rows<Config>(p, storage);
    if (warp >= 2) produce_steps<Config>(p, storage, warp - 2);
  } else {
    cutlass::arch::warpgroup_reg_alloc<224>();
    const int thread = thread_index();
    Consumer<Config> consumer(p, storage, thread / 128 - 1, thread % 128);
    for_each_item(storage, [&](const WorkItem& item) { consumer.run(item); });
    consumer.finish();
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
