// KL loss and gradients with kv_blocks in the outer loop: each work item is a kv_block and the query rows of one KV head
// that visit it, in ascending order. Steps of 16 queries stream past. Two consumer warpgroups take 64 keys each; a
// thread's accumulators are keys x rows, but for the last one:
//
//   s^T    [64 keys][64 rows]         = k q^T                  k in registers, 1, 2 or 4 chunks of rows per step
//   s_idx^T[64 keys][16 queries]      = index_k index_q^T      both from shared memory
//   d_index_k[64 keys][kIndexDim]    += g^T index_q            g^T from registers
//   d_index_q^T[64 channels][queries] = index_k^T g^T          over all 128 keys, g through shared memory
//
// d_index_k stays in registers for the whole item. d_index_q leaves with every step, as fixed-point numbers that the
// copy engine adds to those in memory (params.h).
//
//   barrier           arrivals                         waited on by          guards
//   item_full[i]      warp 0                           warps 1 and 2, cons.  the item
//   item_empty[i]     warps 1 and 2, consumer warps    warp 0                all have read it
//   k_full            warp 0 + bytes                   consumers             k of the item
//   k_empty           consumer warps                   warp 0                k is in registers
//   index_k_full[i]   warp 0 + bytes                   consumers             index_k of the item
//   index_k_empty[i]  consumer warps                   warp 0                all products with it are done
//   q_full[i]         warp 1 + bytes                   consumers             q of a chunk
//   q_empty[i]        consumer warps                   warp 1                its product is done
//   step_full[i]      lanes of warp 2, with copies     consumers             index_q and StepRows of a step
//   step_empty[i]     consumer warps                   warp 2                all products with it are done
//   kKeys             256 threads of the consumers     the same              index keys that are not finite are gone;
//                                                                            d_index_k of the item before is in memory
//   kGradients        256 threads of the consumers     the same              g of both is in shared memory, and so is
//                                                                            d_index_q of the step before
//
// Order of a consumer's products, and what runs beside them:
//
//   s of chunk 1 | P of chunk 0, d_index_q of the step before to memory | s of chunk 2 | P of chunk 1 | ...
//   | s_idx, s of the next step's chunk 0 | P of the last chunk | P_idx, g | d_index_k, d_index_q | the next step
//
// Per step (16 heads, head_dim and index_dim 128): products 2432 cycles of the tensor cores, 34816 exponentials 2176
// cycles; shared memory about 2400 cycles at 128 bytes. 69 KB of q, index_q and log-sum-exps come in, 8 KB of d_index_q
// go out to the L2 cache.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/ptx/turn.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
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

/// A thread's gradients of a step, of two keys and four queries, in the columns of the student's scores.
struct StepGradients {
  float g[2][4];         // P_idx - P, times gradient_scale
  float weighted[2][4];  // the same, times the row's weight
};

/// g = P_idx - P of a step, in its four queries; adds the thread's share of the loss, / ln 2, to `loss`:
/// sum_j P (log2 P - log2 P_idx). Keys that a query does not see have neither.
template <class Config>
__device__ __forceinline__ StepGradients step_gradients(const Params& p, const StepRows<Config::kChunks>& rows,
                                                        const typename Config::Tile::StudentScores& s,
                                                        const float (&teacher)[2][4], const ConsumerThread& at,
                                                        float& loss) {
  using namespace cute;
  StepGradients out;
  CUTE_UNROLL
  for (int n = 0; n < 2; ++n) {
    const int column = 8 * n + 2 * (at.lane % 4);
    const float2 lse2 = *reinterpret_cast<const float2*>(&rows.lse2[column]);
    const float2 weight = *reinterpret_cast<const float2*>(&rows.weight[column]);
    const int2 keys = *reinterpret_cast<const int2*>(&rows.keys[column]);
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float probability = teacher[i][2 * n + c], w = c == 0 ? weight.x : weight.y;
        const bool is_seen = at.key + 8 * i < (c == 0 ? keys.x : keys.y);
        const float log2_student = fmaf(s(make_coord(c, i, n), 0, 0), p.index_scale_log2, c == 0 ? -lse2.x : -lse2.y);
        const float g = (exp2_approx(log2_student) - probability) * Config::kGradientScale;
        out.g[i][2 * n + c] = is_seen ? g : 0;
        out.weighted[i][2 * n + c] = is_seen ? g * w : 0;
        if (is_seen && probability != 0) {  // NaN too
          loss += w * (probability * (log2_approx(probability) - log2_student));
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

/// What a consumer has in registers during an item.
template <class Config>
struct ItemState {
  using Tile = typename Config::Tile;
  typename Tile::template Operand<Tile::kDim> k;
  typename Tile::TeacherScores s[2];  // of this chunk and the next
  typename Tile::IndexKeyGradients d_index_k;
  float loss = 0;
  bool adds_index_keys = false;  // d_index_k holds something
  float probabilities[2][4];     // of the teacher
  // Of a step, whose d_index_q leaves one step later.
  typename Tile::IndexRowGradients d_index_q;
  std::int32_t place = -1;  // lane i < 16: of its query i; -1: nothing to add
};

/// Adds staged rows of d_index_q to those in memory; the first consumer warp, one copy per query.
template <class Config>
__device__ __forceinline__ void add_index_rows(const Params& p, const std::int32_t* sums, std::int32_t place,
                                               int lane) {
  constexpr int kDim = Config::Tile::kIndexDim;
  if (place >= 0) {
    bulk_add(p.d_index_q_sums + std::int64_t{place} * kDim, sums + lane * Config::kSumStride,
             kDim * static_cast<int>(sizeof(std::int32_t)));
  }
  cute::tma_store_arrive();
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
  using Element = typename Tile::Element;
  using Storage = typename Config::Storage;
  static constexpr int kChunks = Config::kChunks;

  const Params& p;
  Storage& storage;
  const ConsumerThread at;
  PipelineState<1> keys;
  PipelineState<Config::kIndexKeyStages> index_keys;
  PipelineState<Config::kRowStages> started, finished;  // chunks of q
  PipelineState<Config::kStepStages> steps;
  int turn = 0;           // of the two buffers of g and of d_index_q
  int* ticket = nullptr;  // of the item before

  __device__ __forceinline__ Consumer(const Params& p, Storage& storage, int consumer, int thread)
      : p(p), storage(storage), at(consumer, thread) {}

  __device__ __forceinline__ bool is_first_thread() const { return at.consumer == 0 && at.thread == 0; }

  __device__ __forceinline__ void release(std::uint64_t* empty) const {
    if (at.lane == 0) EmptyBarrier::arrive(empty);
  }

  /// Starts s^T of the next chunk of q.
  __device__ __forceinline__ void start_chunk(const typename Tile::template Operand<Tile::kDim>& k,
                                              typename Tile::TeacherScores& s) {
    FullBarrier::wait(&storage.q_full[started.stage], started.phase);
    Tile::start_teacher(k, storage.q[started.stage], s, at.thread);
    started.advance();
  }

  /// Puts d_index_q of a step, all of whose products have ended, into its staging memory.
  __device__ __forceinline__ void finish_step(ItemState<Config>& state, int stage) const {
    cute::warpgroup_fence_operand(state.d_index_q);
    cute::warpgroup_fence_operand(state.d_index_k);
    stage_index_rows<Config>(state.d_index_q, storage.rows[stage].to_fixed, storage.sums[turn], at);
    __syncwarp();
    release(&storage.step_empty[stage]);
    cutlass::arch::fence_view_async_shared();
  }

  /// Meets the other consumer: g of this step and d_index_q of the one before are in shared memory.
  __device__ __forceinline__ void meet(const ItemState<Config>& state) {
    const bool adds = at.consumer == 0 && at.thread < 32;
    if (adds) cute::tma_store_wait<0>();  // the copies of the step before that have read the other buffer
    sync(ConsumerBarrier::kGradients, Config::kConsumerThreads);
    if (adds) add_index_rows<Config>(p, storage.sums[turn ^ 1], state.place, at.lane);
  }

  /// Probabilities of a chunk of this step, whose product has ended.
  template <int kChunk>
  __device__ __forceinline__ void sum_chunk(ItemState<Config>& state) {
    constexpr int kOwn = 4 / kChunks;
    auto& scores = state.s[kChunk % 2];
    cute::warpgroup_fence_operand(scores);
    release(&storage.q_empty[finished.stage]);
    finished.advance();
    float part[2][kOwn];
    sum_over_heads<kChunks>(scores, &storage.rows[steps.stage].teacher_lse2[kChunk * kChunkRows], p.scale_log2, at.lane,
                            part);
    CUTE_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      state.probabilities[0][kChunk * kOwn + i] = part[0][i];
      state.probabilities[1][kChunk * kOwn + i] = part[1][i];
    }
  }

  __device__ __forceinline__ void wait_for_step() const {
    FullBarrier::wait(&storage.step_full[steps.stage], steps.phase);
    cutlass::arch::fence_view_async_shared();  // index_q was written by plain copies
  }

  /// Starts the product of the student, and that of the next step's first chunk.
  template <bool kIsLast>
  __device__ __forceinline__ void start_ahead(ItemState<Config>& state, typename Tile::StudentScores& student) {
    Tile::start_student(storage.index_k[index_keys.stage], storage.index_q[steps.stage], student, at.consumer,
                        at.thread);
    if (!kIsLast) start_chunk(state.k, state.s[0]);
  }

  /// The chunks of a step but the first, from kChunk on.
  template <bool kIsLast, int kChunk>
  __device__ __forceinline__ void sum_chunks(ItemState<Config>& state, typename Tile::StudentScores& student) {
    constexpr bool kEnds = kChunk + 1 >= kChunks;
    if constexpr (kChunk < kChunks) {
      if constexpr (kEnds) {
        start_ahead<kIsLast>(state, student);
      } else {
        start_chunk(state.k, state.s[(kChunk + 1) % 2]);
      }
      if (kChunk > 1) cute::warpgroup_wait<kEnds && !kIsLast ? 2 : 1>();
      sum_chunk<kChunk>(state);
      sum_chunks<kIsLast, kChunk + 1>(state, student);
    }
  }

  /// Starts d_index_k and d_index_q of a step.
  __device__ __forceinline__ void start_gradients(ItemState<Config>& state,
                                                  const typename Tile::StudentScores& student) {
    const StepRows<kChunks>& rows = storage.rows[steps.stage];
    const StepGradients gradients = step_gradients<Config>(p, rows, student, state.probabilities, at, state.loss);
    Tile::start_index_keys(Tile::round(gradients.weighted), storage.index_q[steps.stage], state.d_index_k,
                           state.adds_index_keys, at.thread);
    state.adds_index_keys = true;
    Tile::store_gradients(Tile::round(gradients.g), storage.gradients[turn], at.consumer, at.thread);
    cutlass::arch::fence_view_async_shared();
    meet(state);
    Tile::start_index_rows(storage.index_k[index_keys.stage], storage.gradients[turn], state.d_index_q, at.consumer,
                           at.thread);
    const bool adds = at.lane < kStepQueries && rows.keys[at.lane % kStepQueries] > 0;
    state.place = adds ? rows.place[at.lane % kStepQueries] : -1;
  }

  /// A step. On entry the probabilities of its first chunk are there, and the product of its second one has ended; on
  /// return those of the next step, unless this one is the last of the item.
  template <bool kIsLast>
  __device__ __forceinline__ void run_step(ItemState<Config>& state) {
    using namespace cute;
    typename Tile::StudentScores student;
    sum_chunks<kIsLast, 1>(state, student);
    if (kChunks == 1) start_ahead<kIsLast>(state, student);
    warpgroup_wait<kIsLast ? 0 : 1>();
    warpgroup_fence_operand(student);
    start_gradients(state, student);
    const int stage = steps.stage;
    steps.advance();
    if (!kIsLast) begin_step<2>(state);
    warpgroup_wait<0>();
    finish_step(state, stage);
    turn ^= 1;
  }

  /// The first chunk of a step, whose product has been started, with kLater others started after it.
  template <int kLater>
  __device__ __forceinline__ void begin_step(ItemState<Config>& state) {
    if (kChunks > 1) start_chunk(state.k, state.s[1]);
    wait_for_step();
    cute::warpgroup_wait<kLater + (kChunks > 1 ? 1 : 0)>();
    sum_chunk<0>(state);
  }

  /// All steps of an item.
  __device__ __forceinline__ void run(const WorkItem& item) {
    using namespace cute;
    ItemState<Config> state;
    FullBarrier::wait(storage.k_full, keys.phase);
    Tile::load_keys_operand(storage.k, state.k, at.consumer, at.thread);
    __syncwarp();
    release(storage.k_empty);
    keys.advance();
    FullBarrier::wait(&storage.index_k_full[index_keys.stage], index_keys.phase);
    __threadfence();  // d_index_k of the item before has been added
    clean_index_keys<Config>(storage.index_k[index_keys.stage], at.consumer * 128 + at.thread);
    end_turn_before();

    start_chunk(state.k, state.s[0]);
    begin_step<0>(state);
    warpgroup_wait<0>();
    for (int left = item.count; left > kStepQueries; left -= kStepQueries) run_step<false>(state);
    run_step<true>(state);
    warpgroup_fence_operand(state.d_index_k);
    release(&storage.index_k_empty[index_keys.stage]);
    index_keys.advance();
    finish_loss(state.loss);
    if (is_first_thread()) wait_for_turn(p.work.tickets + item.ticket, item.order);
    __syncwarp();
    meet(state);  // the others' turn too
    if (is_first_thread()) write_loss(item);
    add_index_keys<Config>(p, item, state.d_index_k, at);
    ticket = p.work.tickets + item.ticket;
  }

  /// After all items.
  __device__ __forceinline__ void finish() const {
    __threadfence();
    sync(ConsumerBarrier::kKeys, Config::kConsumerThreads);
    end_turn_before();
    cute::tma_store_wait<0>();
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

/// Before any copy: rows of q and log-sum-exps that stand for no head, where a query has less than four.
template <class Config>
__device__ __forceinline__ void clear_missing_heads(const Params& p, typename Config::Storage& storage) {
  if (1 << p.log2_group_size >= 4) return;
  auto* const q = reinterpret_cast<uint4*>(storage.q);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(storage.q) / sizeof(uint4)); i += Config::kThreads) {
    q[i] = uint4{0, 0, 0, 0};
  }
  for (int i = threadIdx.x; i < Config::kStepStages * kChunkRows * Config::kChunks; i += Config::kThreads) {
    storage.rows[i / (kChunkRows * Config::kChunks)].teacher_lse2[i % (kChunkRows * Config::kChunks)] = INFINITY;
  }
  cutlass::arch::fence_view_async_shared();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    kl_kernel(const Params p, const __grid_constant__ CUtensorMap map_q, const __grid_constant__ CUtensorMap map_k,
              const __grid_constant__ CUtensorMap map_index_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  constexpr int kConsumerWarps = Config::kConsumerThreads / 32;
  clear_missing_heads<Config>(p, storage);
  init_barriers([&] {
    init_ring(storage.item_full, storage.item_empty, kConsumerWarps + 2);
    init_ring(storage.k_full, storage.k_empty, kConsumerWarps);
    init_ring(storage.index_k_full, storage.index_k_empty, kConsumerWarps);
    init_ring(storage.q_full, storage.q_empty, kConsumerWarps);
    init_ring(storage.step_full, storage.step_empty, kConsumerWarps, 2 * 32);
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 40 x 128 for the producers, 232 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) produce_items<Config>(p, map_k, map_index_k, storage);
    if (warp == 1) produce_rows<Config>(p, map_q, storage);
    if (warp == 2) produce_steps<Config>(p, storage);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    const int thread = thread_index();
    Consumer<Config> consumer(p, storage, thread / 128 - 1, thread % 128);
    for_each_item(storage, [&](const WorkItem& item) { consumer.run(item); });
    consumer.finish();
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
