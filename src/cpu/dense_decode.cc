// Dense attention of a few queries over all keys, which waits for memory: K and V are streamed once, in the order in
// which they lie. One work item is a segment of a sequence's keys with all KV heads, for a token's heads lie side by
// side. It goes from tile to tile of keys, head by head; while a head is worked on, its share of the next tile's memory
// is fetched, after the last tile that of the next segment, which most often the same thread takes next. The segments'
// (o, m, l) are merged in a second step.

#include <algorithm>
#include <numeric>
#include <utility>

#include "cpu/products.h"
#include "cpu/running_softmax.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

std::int64_t max_queries(const Plan& plan) { return std::min(kMaxDecodeQueries, plan.config.max_total_q); }

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : run(arena, max_queries(plan) * plan.config.num_heads_q, pad_lanes(plan.config.head_dim)),
        segment(arena, max_queries(plan) * plan.config.num_heads_q, pad_lanes(plan.config.head_dim)),
        chunks(core::ceil_div(max_queries(plan), max_chunk(plan.group_size))),
        queries(take_queries(arena, plan.config.num_heads_kv * chunks, plan.config.head_dim,
                             std::min(max_chunk(plan.group_size), max_queries(plan)) * plan.group_size,
                             multiplies_in_pairs(plan))),
        members(arena.take<std::int32_t>(max_queries(plan))),
        qk(arena, decode_keys_per_tile(plan), plan.config.head_dim, multiplies_in_pairs(plan)),
        values(arena, decode_keys_per_tile(plan), plan.config.head_dim, multiplies_in_pairs(plan)),
        ahead(arena, decode_keys_per_tile(plan)),
        speed(product_speed(multiplies_in_pairs(plan))),
        row_speed(row_product_speed(multiplies_in_pairs(plan))),
        keys_ld(decode_keys_per_tile(plan)),
        scores(arena.take<float>(decode_keys_per_tile(plan) * kMaxColumns)),
        limit(arena.take<float>(kMaxColumns)),
        max(arena.take<float>(kMaxColumns)),
        sum(arena.take<float>(kMaxColumns)),
        alpha(arena.take<float>(kMaxColumns)) {
    if (members != nullptr) std::iota(members, members + max_queries(plan), 0);
  }

  StepTimes times(const Plan& plan, std::int64_t columns, bool are_few) const {
    return step_times(plan, columns, are_few, are_few ? row_speed : speed);
  }

  RunningSoftmax run;      // of the last kDecodeRunKeys keys; rows [KV head][query][head of the group]
  RunningSoftmax segment;  // of the runs before
  std::int64_t chunks;
  ScoreQueries* queries;  // [KV head][chunks]
  std::int32_t* members;  // 0, 1, 2 ...
  ScoreProduct qk;
  ValueProduct values;
  FetchList ahead;
  std::int64_t speed, row_speed;
  std::int64_t keys_ld;  // decode_keys_per_tile
  float* scores;         // [keys_ld][kMaxColumns], or [columns][keys_ld] of few
  float *limit, *max, *sum, *alpha;
};

/// Results of the segments: [max_decode_rows][num_heads_q][max_segments].
struct Partials {
  Partials(Arena& arena, const Plan& plan)
      : segments(max_segments(plan)),
        heads(plan.config.num_heads_q),
        state(arena, segments == 1 ? 0 : max_decode_rows(plan) * heads * segments, pad_lanes(plan.config.head_dim)) {}

  RunningSoftmax row(const Plan& plan, const Item& item, std::int64_t t, std::int64_t head,
                     std::int64_t segment) const {
    return state.from((decode_row(plan, item.b, item.sequence, t) * heads + head) * segments + segment);
  }

  std::int64_t segments;
  std::int64_t heads;
  RunningSoftmax state;
};

struct Workspace {
  Workspace(Arena& arena, const Plan& plan) : threads(arena, plan), partials(arena, plan) {}
  PerThread<Scratch> threads;
  Partials partials;
};

/// Calls body(columns, chunk) for the query rows of one KV head, in chunks.
template <class Body>
void for_each_query_chunk(const Plan& plan, const Sequence& sequence, std::int64_t head, const Scratch& s,
                          const Body& body) {
  std::int64_t chunk = 0;
  for_each_chunk(s.members, sequence.seqlen_q, head * plan.group_size, plan.group_size,
                 [&](const Columns& columns) { body(columns, chunk++); });
}

void load_queries(const Problem& problem, const Sequence& sequence, Scratch& s) {
  for (std::int64_t head = 0; head < problem.plan.config.num_heads_kv; ++head) {
    for_each_query_chunk(problem.plan, sequence, head, s, [&](const Columns& columns, std::int64_t chunk) {
      s.queries[head * s.chunks + chunk].load(problem.tensors.q, sequence, columns,
                                              static_cast<float>(problem.plan.softmax_scale));
    });
  }
}

/// Loads a head's keys and values; `queries` are the first that meet them.
void load(const Plan& plan, const Sequence& sequence, const KeySpan& k, const KeySpan& v, const ScoreQueries& queries,
          Scratch& s) {
  const std::int64_t columns = std::min(max_chunk(plan.group_size), sequence.seqlen_q) * plan.group_size;
  const bool are_few = s.qk.has_few_columns(queries);  // and so are those of the queries after them
  const bool has_keys = are_few && s.qk.load_keys_for_rows(k), has_values = are_few && s.values.load_for_rows(v);
  const StepTimes times = s.times(plan, columns, are_few);
  const std::int64_t products = times.scores + times.softmax + times.values;
  const std::int64_t load_v = has_values ? 0 : times.load_v;
  if (!has_keys) s.qk.load_keys(k, s.ahead.take(times.load_k, load_v + products));
  if (!has_values) s.values.load(v, s.ahead.take(load_v, products));
}

/// Brings consecutive rows up to date with the keys and values loaded; the first of them is that of column 0.
void attend(const Plan& plan, const Sequence& sequence, const Columns& columns, const ScoreQueries& queries,
            std::int64_t first_key, std::int64_t keys, const RunningSoftmax& rows, Scratch& s) {
  const TileOps& ops = tile_ops();
  const std::int64_t size = columns.size();
  const bool is_partial = causal_limits(sequence, columns, first_key, keys, s.limit);
  const bool is_few = s.qk.has_few_columns(queries);
  const StepTimes times = s.times(plan, size, is_few);
  const Ahead during_scores = s.ahead.take(times.scores, times.softmax + times.values);
  const Ahead during_softmax = s.ahead.take(times.softmax, times.values);
  std::copy_n(rows.max, size, s.max);
  std::copy_n(rows.sum, size, s.sum);
  if (is_few) {
    s.qk.row_scores(queries, s.scores, s.keys_ld, during_scores);
    ops.softmax_rows(s.scores, s.keys_ld, keys, size, s.limit, s.max, s.sum, s.alpha, during_softmax);
  } else {
    s.qk.scores(queries, s.scores, kMaxColumns, during_scores);
    std::fill(s.max + size, s.max + columns.padded(), -kInfinity);
    std::fill(s.sum + size, s.sum + columns.padded(), 0.0f);
    ops.softmax_columns(s.scores, kMaxColumns, keys, columns.padded(), s.limit, s.max, s.sum, s.alpha, during_softmax);
  }
  std::copy_n(s.max, size, rows.max);
  std::copy_n(s.sum, size, rows.sum);
  for (std::int64_t c = 0; c < size; ++c) {
    float* o = rows.o + c * rows.ld;
    if (s.alpha[c] == 1) continue;  // mostly: the maximum has not grown
    for (std::int64_t i = 0; i < rows.ld; ++i) o[i] *= s.alpha[c];
  }
  if (is_few) {
    s.values.multiply_rows(s.scores, s.keys_ld, size, s.limit, is_partial, rows.o, true, s.ahead.take());
  } else {
    s.values.multiply(s.scores, size, s.limit, is_partial, rows.o, true, s.ahead.take());
  }
}

/// Whether a token's rows of all heads lie side by side.
template <class RowsOf>
bool lie_together(const RowsOf& rows_of, std::int64_t heads, std::int64_t row_bytes) {
  return heads > 1 && rows_of(1).data - rows_of(0).data == row_bytes;
}

/// Adds the memory to fetch while `head` is worked on: its share of the next tile's rows of all heads, so that
/// memory is read from front to back, or its own rows.
template <class RowsOf>
void fetch_share(const RowsOf& rows_of, bool is_together, std::int64_t heads, std::int64_t head, std::int64_t begin,
                 std::int64_t count, FetchList& list) {
  if (is_together) {
    const std::int64_t from = count * head / heads, to = count * (head + 1) / heads;
    list.add({rows_of(0), begin + from, to - from});
  } else {
    list.add({rows_of(head), begin, count});
  }
}

/// s.segment becomes that of the run's keys too, and another run begins.
void end_run(std::int64_t rows, bool is_first, Scratch& s) {
  if (is_first) {
    std::swap(s.run, s.segment);
  } else {
    for (std::int64_t row = 0; row < rows; ++row) merge_rows(s.segment.from(row), s.run.from(row));
  }
  s.run.reset(rows);
}

/// Leaves the result of one segment's keys in s.segment.
void attend_segment(const Problem& problem, const Sequence& sequence, Segment segment, Scratch& s) {
  const Plan& plan = problem.plan;
  const std::int64_t rows_of_all = sequence.seqlen_q * plan.config.num_heads_q;
  const std::int64_t heads = plan.config.num_heads_kv, dim = plan.config.head_dim;
  const std::int64_t end = std::min(segment.end * plan.config.block_size, sequence.seqlen_k);
  const auto k = [&](std::int64_t head) { return problem.k(sequence, head); };
  const auto v = [&](std::int64_t head) { return problem.v(sequence, head); };
  const std::int64_t row_bytes = dim * static_cast<std::int64_t>(openmsa_dtype_bytes(plan.config.kv_dtype));
  const bool are_together = lie_together(k, heads, row_bytes) && lie_together(v, heads, row_bytes);
  s.run.reset(rows_of_all);
  std::int64_t keys, in_run = 0;
  bool is_first = true;
  for (std::int64_t begin = segment.begin * plan.config.block_size; begin < end; begin += keys) {
    keys = std::min(decode_keys_per_tile(plan), end - begin);
    const std::int64_t next = std::min(decode_keys_per_tile(plan), sequence.seqlen_k - begin - keys);
    for (std::int64_t head = 0; head < heads; ++head) {
      s.ahead.begin(are_together ? row_bytes * heads : row_bytes);
      fetch_share(k, are_together, heads, head, begin + keys, next, s.ahead);
      fetch_share(v, are_together, heads, head, begin + keys, next, s.ahead);
      load(plan, sequence, {k(head), begin, keys}, {v(head), begin, keys}, s.queries[head * s.chunks], s);
      RunningSoftmax rows = s.run.from(head * sequence.seqlen_q * plan.group_size);
      for_each_query_chunk(plan, sequence, head, s, [&](const Columns& columns, std::int64_t chunk) {
        attend(plan, sequence, columns, s.queries[head * s.chunks + chunk], begin, keys, rows, s);
        rows = rows.from(columns.size());
      });
    }
    in_run += keys;
    if (in_run < kDecodeRunKeys && begin + keys < end) continue;
    end_run(rows_of_all, is_first, s);
    is_first = false;
    in_run = 0;
  }
  if (is_first) end_run(rows_of_all, is_first, s);  // a segment without keys
}

/// Writes the rows of a finished segment, or keeps them for merge_segments.
void store_segment(const Problem& problem, const Item& item, const RunningSoftmax& state, const Partials& partials) {
  const Sequence& sequence = item.sequence;
  const std::int64_t group = problem.plan.group_size;
  for (std::int64_t row = 0; row < sequence.seqlen_q * problem.plan.config.num_heads_q; ++row) {
    const std::int64_t t = row / group % sequence.seqlen_q, h = row / group / sequence.seqlen_q * group + row % group;
    const RunningSoftmax from = state.from(row);
    if (num_segments(problem.plan, sequence) == 1) {
      write_row(problem, sequence.q_begin + t, h, from);
      continue;
    }
    const RunningSoftmax to = partials.row(problem.plan, item, t, h, item.index);
    std::copy_n(from.o, from.ld, to.o);
    *to.max = *from.max;
    *to.sum = *from.sum;
  }
}

/// In the order of the keys.
void merge_segments(const Problem& problem, const Item& item, std::int64_t t, std::int64_t head,
                    const Partials& partials) {
  const Plan& plan = problem.plan;
  const RunningSoftmax all = partials.row(plan, item, t, head, 0);
  for (std::int64_t i = 1; i < num_segments(plan, item.sequence); ++i) {
    merge_rows(all, partials.row(plan, item, t, head, i));
  }
  write_row(problem, item.sequence.q_begin + t, head, all);
}

}  // namespace

void dense_decode(const Problem& problem, Arena& arena, const Loops& loops) {
  const Plan& plan = problem.plan;
  const Workspace workspace(arena, plan);
  for_each_item(
      problem, loops,
      [&](const Sequence& sequence) {
        return is_decode(sequence) && sequence.seqlen_q > 0 ? num_segments(plan, sequence) : 0;
      },
      [&](const Item& item, int slot) {
        Scratch s = workspace.threads[slot];
        load_queries(problem, item.sequence, s);
        attend_segment(problem, item.sequence, segment(plan, item.sequence, item.index), s);
        store_segment(problem, item, s.segment, workspace.partials);
      });
  const std::int64_t heads = plan.config.num_heads_q;
  for_each_item(
      problem, loops,
      [&](const Sequence& sequence) { return num_segments(plan, sequence) == 1 ? 0 : sequence.seqlen_q * heads; },
      [&](const Item& item, int) {
        merge_segments(problem, item, item.index / heads, item.index % heads, workspace.partials);
      });
}

void plan_dense_decode(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

}  // namespace openmsa::cpu
