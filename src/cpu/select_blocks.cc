// The index branch and top-k in one pass: scores of a tile of queries against each kv_block go straight into running
// top-k lists. With few queries over many keys (decode) the kv_blocks are split into segments, whose lists are merged.
// A row's list becomes its selection or, where the call asks for candidates, a shard's part in it.

#include <algorithm>
#include <array>

#include "cpu/index_tile.h"
#include "cpu/stages.h"
#include "cpu/topk.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : tile(arena, plan),
        candidates(arena.take<Candidates>(index_queries_per_tile(plan))),
        ends(arena.take<std::int32_t>(columns(plan))),
        lists{arena.take<std::int32_t>(plan.config.topk * columns(plan)),
              arena.take<std::int32_t>(plan.config.topk * columns(plan)), columns(plan), 0} {}
  static std::int64_t columns(const Plan& plan) {
    return pad_lanes(index_queries_per_tile(plan) * plan.config.num_heads_kv);
  }

  IndexTile tile;
  Candidates* candidates;  // [queries]
  std::int32_t* ends;      // [columns] of the candidates
  TopkColumns lists;
};

/// The lists of decode rows per segment: [max_decode_rows][num_heads_kv][max_segments][topk], and their sizes.
struct Partials {
  Partials(Arena& arena, const Plan& plan)
      : segments(max_segments(plan)),
        lists(arena.take<ScoredBlock>(rows(plan) * plan.config.topk)),
        sizes(arena.take<std::int64_t>(rows(plan))) {}

  std::int64_t rows(const Plan& plan) const {
    return segments == 1 ? 0 : max_decode_rows(plan) * plan.config.num_heads_kv * segments;
  }
  std::int64_t row(const Plan& plan, const Item& item, std::int64_t t, std::int64_t head, std::int64_t segment) const {
    return (decode_row(plan, item.b, item.sequence, t) * plan.config.num_heads_kv + head) * segments + segment;
  }

  std::int64_t segments;
  ScoredBlock* lists;
  std::int64_t* sizes;
};

struct Workspace {
  Workspace(Arena& arena, const Plan& plan) : threads(arena, plan), partials(arena, plan) {}
  PerThread<Scratch> threads;
  Partials partials;
};

/// Range of a segment's kv_blocks that compete for some query of a tile, and the end of those of all segments; the slots
/// that they compete for (the same for every query that has any, for then all forced kv_blocks are visible), and whether
/// scores are wanted, since some lose or since they are what is asked for.
struct Contest {
  std::int64_t begin, end;
  std::int64_t end_of_all;
  std::int64_t slots;
  bool has_scores;
};

Contest contest(const Problem& problem, const Candidates* candidates, std::int64_t count, Segment segment) {
  const Plan& plan = problem.plan;
  Contest result{segment.end, segment.begin, 0, 0, core::present(problem.tensors.candidates)};
  for (std::int64_t t = 0; t < count; ++t) {
    const Candidates& of_query = candidates[t];
    if (of_query.slots == 0) continue;
    result.begin = std::min(result.begin, std::max(of_query.init, segment.begin));
    result.end = std::max(result.end, std::min(of_query.end, segment.end));
    result.end_of_all = std::max(result.end_of_all, of_query.end);
    result.slots = plan.config.topk - of_query.local - of_query.init;
    result.has_scores |= of_query.slots < of_query.end - of_query.init;
  }
  result.begin = plan.first_held(result.begin);
  return result;
}

void begin_lists(const Contest& range, std::int64_t count, std::int64_t heads, Scratch& s) {
  s.lists.depth = range.slots;
  std::fill_n(s.lists.keys, range.slots * s.lists.ld, kNoKey);
  std::fill_n(s.ends, pad_lanes(count * heads), 0);
  for (std::int64_t t = 0; t < count; ++t) {
    const auto end = static_cast<std::int32_t>(s.candidates[t].slots > 0 ? s.candidates[t].end : 0);
    std::fill_n(s.ends + t * heads, heads, end);
  }
}

/// Fills s.lists with the best kv_blocks of one segment for queries [first, first + count).
void select_tile(const Problem& problem, const Sequence& sequence, std::int64_t first, std::int64_t count,
                 Segment segment, Scratch& s) {
  const Plan& plan = problem.plan;
  const std::int64_t heads = plan.config.num_heads_kv, columns = pad_lanes(count * heads);
  for (std::int64_t t = 0; t < count; ++t) s.candidates[t] = Candidates(plan, sequence.position(first + t));
  const Contest range = contest(problem, s.candidates, count, segment);
  begin_lists(range, count, heads, s);
  if (range.begin >= range.end) return;
  s.tile.load(problem, sequence, first, count);
  std::fill_n(s.tile.top, columns, 0.0f);
  for (std::int64_t block = range.begin; block < range.end; block += plan.config.shard_count) {
    if (range.has_scores) s.tile.score(problem, sequence, block, range.end_of_all);
    tile_ops().offer(s.tile.top, static_cast<std::int32_t>(block), s.ends, columns, s.lists);
  }
}

/// Copies the entries of one column to `to`, best first; returns their number.
std::int64_t copy_column(const TopkColumns& lists, std::int64_t column, ScoredBlock* to) {
  std::int64_t size = 0;
  for (; size < lists.depth && lists.keys[size * lists.ld + column] != kNoKey; ++size) {
    to[size] = {lists.keys[size * lists.ld + column], lists.blocks[size * lists.ld + column]};
  }
  return size;
}

/// What becomes of the row's list, best first.
void write_row(const Problem& problem, std::int64_t head, std::int64_t row, const Candidates& candidates,
               std::span<const ScoredBlock> list) {
  const openmsa_tensor& out = problem.tensors.candidates;
  if (!core::present(out)) return write_selection(problem.tensors.topk_indices, head, row, candidates, list);
  const auto count = static_cast<std::int64_t>(list.size());
  for (std::int64_t slot = 0; slot < out.shape[2]; ++slot) {
    core::Ranked& to = core::element<core::Ranked>(out, head, row, slot);
    to = slot < count ? core::rank_of_key(list[slot].key, list[slot].block) : core::kNoCandidate;
  }
}

/// Offers the segments' lists of one row to a last list, lowest kv_blocks first, as one segment would have.
void merge_row(const Problem& problem, const Item& item, std::int64_t t, std::int64_t head, const Partials& partials) {
  const Plan& plan = problem.plan;
  const Candidates candidates(plan, item.sequence.position(t));
  std::array<ScoredBlock, 64> memory;
  TopkList list(memory.data(), candidates.slots);
  for (std::int64_t i = 0; i < num_segments(plan, item.sequence); ++i) {
    const std::int64_t row = partials.row(plan, item, t, head, i);
    ScoredBlock* entries = partials.lists + row * plan.config.topk;
    std::sort(entries, entries + partials.sizes[row],
              [](const ScoredBlock& a, const ScoredBlock& b) { return a.block < b.block; });
    for (std::int64_t e = 0; e < partials.sizes[row]; ++e) list.offer(entries[e]);
  }
  write_row(problem, head, item.sequence.q_begin + t, candidates, list.entries());
}

}  // namespace

void plan_select_blocks(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

void select_blocks(const Problem& problem, Arena& arena, const Loops& loops) {
  const Plan& plan = problem.plan;
  const Workspace workspace(arena, plan);
  const Partials& partials = workspace.partials;
  const std::int64_t tile = index_queries_per_tile(plan), heads = plan.config.num_heads_kv;
  for_each_item(
      problem, loops,
      [&](const Sequence& sequence) { return core::ceil_div(sequence.seqlen_q, tile) * num_segments(plan, sequence); },
      [&](const Item& item, int slot) {
        Scratch s = workspace.threads[slot];
        const std::int64_t segments = num_segments(plan, item.sequence), index = item.index % segments;
        const std::int64_t first = item.index / segments * tile;
        const std::int64_t count = std::min(tile, item.sequence.seqlen_q - first);
        select_tile(problem, item.sequence, first, count, segment(plan, item.sequence, index), s);
        for (std::int64_t c = 0; c < count * heads; ++c) {
          const std::int64_t t = first + c / heads, head = c % heads;
          if (segments == 1) {
            std::array<ScoredBlock, 64> chosen;
            const auto size = static_cast<std::size_t>(copy_column(s.lists, c, chosen.data()));
            write_row(problem, head, item.sequence.q_begin + t, s.candidates[c / heads], {chosen.data(), size});
          } else {
            const std::int64_t row = partials.row(plan, item, t, head, index);
            partials.sizes[row] = copy_column(s.lists, c, partials.lists + row * plan.config.topk);
          }
        }
      });
  for_each_item(
      problem, loops,
      [&](const Sequence& sequence) { return num_segments(plan, sequence) == 1 ? 0 : sequence.seqlen_q * heads; },
      [&](const Item& item, int) { merge_row(problem, item, item.index / heads, item.index % heads, partials); });
  write_query_padding(problem, problem.tensors.topk_indices, 1, -1);
  write_query_padding(problem, problem.tensors.candidates, 1, static_cast<double>(core::kNoCandidate));
}

}  // namespace openmsa::cpu
