// Choices on Hopper that change how long a call takes, and nothing else: each with its unit and its reason. Measured on
// an H200 (132 SMs); docs/kernels/prefill.md and docs/kernels/decode.md have the tables. What sizes a workspace may
// depend on the plan, not on the device; what decides between kernels may depend on shapes, not on values, so that a
// captured graph stays what it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/common/query_range.h"

namespace openmsa::cuda::sm90 {

constexpr std::int64_t covering(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// ---- Prefill or decode ----------------------------------------------------------------------------------------------

/// Shapes that the choice between kernels looks at.
struct CallShape {
  std::int64_t total_q;
  std::int64_t batch;
  std::int64_t max_seqlen_k;
};

/// Who serves which sequences of a call. Shapes do not tell how its query tokens are shared out, so a mixture launches
/// all of these kernels, and each takes the sequences in its range: one graph serves all mixtures.
struct Route {
  QueryRange decode[2];  // one after the other
  QueryRange prefill;

  constexpr bool operator==(const Route& other) const {
    return decode[0] == other.decode[0] && decode[1] == other.decode[1] && prefill == other.prefill;
  }
};
inline constexpr Route kNobodyServes{{kNoSequences, kNoSequences}, kNoSequences};
inline constexpr Route kDecodeServesAll{{kAllSequences, kNoSequences}, kNoSequences};
inline constexpr Route kPrefillServesAll{{kNoSequences, kNoSequences}, kAllSequences};

/// Query tokens of a sequence of a mixture up to which decode kernels serve it: a few speculated tokens read the same
/// kv_blocks, and there are too few of them for the 64-row products of prefill.
inline constexpr std::int32_t kDecodeQueries = 16;
/// Sequences with one query token are served by themselves: the smallest tiles hold them.
inline constexpr Route kMixture{{{1, 1}, {2, kDecodeQueries}}, {kDecodeQueries + 1, INT32_MAX}};
/// Query tokens of a call up to which the launches of a mixture, each some 2 us, cost more than decode kernels lose on
/// what would be prefill's: the more so where a chunk of a prompt is among few sequences. From 64 tokens of one sequence
/// on a kv_block of 8K keys is wanted by 16 of them, and prefill loads it once.
inline constexpr std::int64_t kFewQueries = 128, kFewOfChunk = 64;
/// Keys of a unit of the decode index branch.
inline constexpr std::int32_t kUnitKeys = 128;

constexpr bool decodes_on_average(const CallShape& call) { return call.total_q <= kDecodeQueries * call.batch; }

/// A step that brings no more tokens than sequences is one of decodes, empty rows or not.
constexpr bool is_few(const CallShape& call) {
  return call.total_q <= std::max(call.batch, decodes_on_average(call) ? kFewQueries : kFewOfChunk);
}

/// Decode's index branch counts the key units of all query tiles in 32 bits, and its tiles hold few query tokens.
constexpr Route select_route(const CallShape& call) {
  const std::int64_t query_tiles = call.total_q + call.batch;
  if (query_tiles > INT32_MAX / (covering(call.max_seqlen_k, kUnitKeys) + 1)) return kPrefillServesAll;
  if (is_few(call)) return decodes_on_average(call) ? kDecodeServesAll : kPrefillServesAll;
  return call.batch == 1 ? kPrefillServesAll : kMixture;
}

constexpr Route attend_route(const CallShape& call) {
  if (is_few(call)) return kDecodeServesAll;
  return call.batch == 1 ? kPrefillServesAll : kMixture;
}

// ---- Prefill: attention ---------------------------------------------------------------------------------------------

/// Tiles of a schedule batch. row_bytes: of a query's partial results; max_tiles: that a call can have. Bounded in
/// bytes (with the selection of a million queries a workspace stays below 2 GiB), and in rows so that its schedule
/// stays short.
constexpr std::int64_t schedule_batch_tiles(std::int64_t row_bytes, std::int64_t tile_queries, std::int64_t max_tiles) {
  constexpr std::int64_t kPartialBytes = std::int64_t{960} << 20, kBatchRows = 16384;
  const std::int64_t rows = std::min(kBatchRows, kPartialBytes / row_bytes);
  return std::min(std::max<std::int64_t>(rows / tile_queries, 1), max_tiles);
}

/// Passes of a schedule batch through its kv_outer work, where kv_blocks are wanted often enough: the q of a pass, of
/// q_bytes in all, should stay in the L2 cache (16 MiB of it).
constexpr std::int64_t schedule_batch_passes(std::int64_t q_bytes, std::int64_t max_passes) {
  constexpr std::int64_t kPassBytes = 16 << 20;
  return std::clamp<std::int64_t>(covering(q_bytes, kPassBytes), 1, max_passes);
}

/// Schedule batches that are scheduled together, of all: enough to fill the device with the schedule's small kernels.
constexpr std::int64_t batches_at_once(std::int64_t batches) {
  constexpr std::int64_t kBatchesAtOnce = 8;
  return std::min(kBatchesAtOnce, batches);
}

/// Tiles of a call's schedule batches, at most max_tiles: as many for every SM.
constexpr std::int32_t tiles_on_all_sms(std::int64_t tiles, std::int32_t max_tiles, std::int32_t num_sms) {
  if (tiles <= max_tiles) return static_cast<std::int32_t>(tiles);
  return max_tiles > num_sms ? max_tiles - max_tiles % num_sms : max_tiles;
}

/// Schedule batches whose kernels run beside each other: as many as have room for their partial results, which those of
/// a large call have not and need not. A power of two.
constexpr std::int32_t batches_together(std::int64_t tiles, std::int64_t partial_tiles, std::int32_t most) {
  std::int32_t together = most;
  while (together > 1 && together * tiles > partial_tiles) together /= 2;
  return together;
}

/// Queries of a tile that must want a kv_block for q_outer to work it off: three quarters of them. With fewer, one pass
/// over all rows costs more than kv_outer's work on the few. At 8K keys 5 to 7 of 8 were equally good, 4 was 9 % and 3
/// was 25 % slower.
constexpr std::int32_t shared_threshold(std::int32_t tile_queries) { return std::max(2, tile_queries * 3 / 4); }

// ---- Decode: index branch -------------------------------------------------------------------------------------------

/// (query, head) rows of a query tile.
inline constexpr std::int32_t kDecodeTileRows[] = {8, 16, 32, 64};
inline constexpr std::int32_t kMostDecodeTileRows = 64;
/// Candidates of a row's list, twice topk at least, with which several CTAs share an SM. Longer ones have the largest
/// tile only.
inline constexpr std::int32_t kDecodeShortList = 64;
inline constexpr std::int32_t kMaxSms = 144;  // that Hopper has
/// Shared memory that fits into an SM once, not twice: CTAs with long lists have the same work, and every SM must get
/// exactly one of them, even where it still runs the attention of the layer before.
inline constexpr std::size_t kMoreThanHalfOfShared = (113 << 10) + 128;
/// What a CTA of the attention to e4m3 takes, more than it needs: those that could share an SM with more others do not
/// finish earlier for it. One fits beside a CTA of the index branch.
inline constexpr std::size_t kQuantizedAttendShared = 112 << 10;

/// Shared memory of an SM.
inline constexpr std::size_t kSharedOfSm = 228 << 10;

/// CTAs of the index branch that an SM holds at once, each with an equal share of the keys. Several hide each other's
/// beginning and end; a CTA alone has two warpgroups, which finish a short share earlier, and with few rows it leaves
/// room for one of the attention.
constexpr std::int32_t index_ctas_per_sm(std::int32_t tile_rows, std::int32_t topk, bool is_fp8) {
  if (2 * topk > kDecodeShortList || tile_rows == kDecodeTileRows[0]) return 1;
  return tile_rows == kDecodeTileRows[1] && is_fp8 ? 3 : 2;
}
/// On any device, in any call.
inline constexpr std::int32_t kMaxIndexCtas = 3 * kMaxSms;

/// Mean query tokens per sequence of a call.
constexpr std::int64_t mean_queries(std::int64_t total_q, std::int64_t batch) {
  return std::max<std::int64_t>(covering(total_q, std::max<std::int64_t>(batch, 1)), 1);
}

/// Query tokens of a sequence that tiles are made for: the mean where all sequences are served, otherwise the most.
constexpr std::int64_t expected_queries(QueryRange served, std::int64_t total_q, std::int64_t batch) {
  return served.is_open() ? mean_queries(total_q, batch) : served.most;
}

/// Rows of the query tiles: the fewest that hold those of a sequence, so that no row of a product is for nothing.
constexpr std::int32_t index_tile_rows(std::int64_t mean_queries, std::int32_t num_heads, std::int32_t topk) {
  for (const std::int32_t rows : kDecodeTileRows) {
    if (2 * topk <= kDecodeShortList && mean_queries * num_heads <= rows) return rows;
  }
  return kMostDecodeTileRows;
}

// ---- Decode: attention ----------------------------------------------------------------------------------------------

/// Queries of a cluster, at most. Clusters of 8 were never the best.
inline constexpr std::int32_t kClusterQueries = 4;
inline constexpr unsigned int kMaxClusterCtas = 16;
inline constexpr unsigned int kPortableClusterCtas = 8;  // what every device can schedule

/// Queries that share a cluster and what it reads: one as long as there is an SM for each; then as many as `expected`
/// ones of a sequence can be cut into. Two are no faster than one and one. e4m3 is half as much to read, so that the
/// warps of a shared cluster become the bound, most of which wait while a kv_block of one query is worked off: with
/// clusters of their own queries that choose different kv_blocks take 0.63 to 0.76 of the time, those that choose the
/// same ones 1.02 to 1.25.
constexpr std::int32_t cluster_queries(std::int64_t total_q, std::int64_t expected, std::int32_t num_heads, int num_sms,
                                       bool has_fp8_kv) {
  if (has_fp8_kv || total_q * num_heads <= num_sms) return 1;
  for (const std::int32_t queries : {kClusterQueries, 3}) {
    if (expected % queries == 0) return queries;
  }
  return 1;
}

/// Clusters for a mixture, of which nobody knows how many groups of queries it has: as many as run at once.
constexpr std::int64_t mixture_clusters(std::int64_t groups, std::int32_t num_heads, std::int64_t num_sms,
                                        std::int64_t ctas_per_sm) {
  return std::min(groups * num_heads, num_sms * ctas_per_sm);
}

/// CTAs of the next smaller cluster: powers of two, up to the portable one any number.
constexpr unsigned int smaller_cluster(unsigned int ctas) { return ctas <= kPortableClusterCtas ? ctas - 1 : ctas / 2; }

/// CTAs of each of `clusters` clusters: the most with which all clusters run at once, as a second round would take as
/// long as the first. active(ctas): clusters of that size that the device holds at once. A cluster has to find room in
/// one part of the card, so that fewer fit than the number of SMs suggests; and while the index branch still leaves, fewer
/// than that: clusters of up to 8 whose CTAs share SMs take three quarters of the room, larger ones have SMs to themselves.
template <class Active>
unsigned int cluster_ctas(unsigned int clusters, unsigned int num_sms, unsigned int ctas_per_sm, Active active) {
  const auto run_at_once = [&](unsigned int ctas) {
    const unsigned int all = clusters * ctas;
    if (ctas <= 2) return all <= num_sms * ctas_per_sm;
    const bool has_room = all <= num_sms || (ctas <= kPortableClusterCtas && all <= num_sms * ctas_per_sm * 3 / 4);
    return has_room && active(ctas) >= static_cast<int>(clusters);
  };
  unsigned int ctas = kMaxClusterCtas;
  while (ctas > 1 && !run_at_once(ctas)) ctas = smaller_cluster(ctas);
  return ctas;
}

// ---- Dense attention ------------------------------------------------------------------------------------------------

/// CTAs of dense decode, one per SM, at most: Hopper has up to 144.
inline constexpr std::int32_t kMaxDenseCtas = kMaxSms;
/// Queries of an item of dense decode, where sequences have more than one. Each keeps a warp busy for two thirds of the
/// time that its keys take to arrive.
inline constexpr std::int32_t kDenseTileQueries = 8;

/// Whether dense attention cuts the keys of a call's sequences into segments: few query tokens per sequence do not fill
/// the 128-row tiles of a prompt, and those kernels have no fp8 caches.
constexpr bool dense_is_decode(std::int64_t total_q, std::int64_t batch, bool has_fp8_kv) {
  return has_fp8_kv || total_q <= kDecodeQueries * batch;
}

constexpr std::int32_t dense_tile_queries(std::int64_t mean_queries) {
  return mean_queries == 1 ? 1 : kDenseTileQueries;
}

}  // namespace openmsa::cuda::sm90
