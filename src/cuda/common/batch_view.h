// The sequences of a call as kernels see them: device pointers to lengths, and where a tile of queries lies.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define OPENMSA_DEVICE __device__ __forceinline__
#else
#define OPENMSA_DEVICE inline
#endif

namespace openmsa::cuda {

/// Exponent of a power of two: pages, kv_blocks and boxes are such, and a division takes a warp longer than a load from
/// shared memory.
OPENMSA_DEVICE int log2_of(std::int32_t power) {
#ifdef __CUDA_ARCH__
  return 31 - __clz(power);
#else
  return 31 - __builtin_clz(static_cast<unsigned int>(power));
#endif
}

/// A strided int32 vector in device memory; nullptr: absent.
struct IntVector {
  const std::int32_t* data;
  std::int64_t stride;
  OPENMSA_DEVICE std::int32_t at(std::int64_t i) const { return data[i * stride]; }
};

/// How a vector is read: as it is, or by the L2 cache, past what an SM may have kept of it.
struct ReadPlainly {
  OPENMSA_DEVICE std::int32_t operator()(IntVector vector, std::int64_t i) const { return vector.at(i); }
};
#ifdef __CUDACC__
struct ReadByL2 {
  OPENMSA_DEVICE std::int32_t operator()(IntVector vector, std::int64_t i) const {
    return __ldcg(vector.data + i * vector.stride);
  }
};
#endif

/// The last b in [0, count) with offsets[b] <= value.
OPENMSA_DEVICE std::int32_t find_sequence(IntVector offsets, std::int32_t count, std::int32_t value) {
  std::int32_t low = 0, high = count;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (offsets.at(middle) <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// One sequence: rows [q_row, q_row + seqlen_q) of the query tensors, seqlen_k keys from row k_row (contiguous).
struct SequenceView {
  std::int32_t q_row;
  std::int32_t seqlen_q;
  std::int32_t k_row;
  std::int32_t seqlen_k;

  OPENMSA_DEVICE bool operator==(const SequenceView& other) const {
    return q_row == other.q_row && seqlen_q == other.seqlen_q && k_row == other.k_row && seqlen_k == other.seqlen_k;
  }
};

struct BatchView {
  std::int32_t batch;
  std::int32_t total_q;
  std::int32_t total_k;    // of a single contiguous sequence without cu_seqlens_k
  IntVector cu_seqlens_q;  // absent: one sequence
  IntVector cu_seqlens_k;  // contiguous keys
  IntVector seqlens_k;     // paged keys
  IntVector block_table;   // paged keys; stride between entries of a row
  std::int64_t table_row;  // stride between rows of block_table
  std::int32_t page_size;  // 0: contiguous
  std::int32_t block_size;

  /// Sequence b; b = batch stands for the padding rows behind the last sequence, which see no key.
  template <class Read = ReadPlainly>
  OPENMSA_DEVICE SequenceView sequence(std::int32_t b, Read read = {}) const {
    SequenceView s{0, total_q, 0, 0};
    if (cu_seqlens_q.data != nullptr) {
      s.q_row = read(cu_seqlens_q, b);
      s.seqlen_q = (b < batch ? read(cu_seqlens_q, b + 1) : total_q) - s.q_row;
    } else if (b > 0) {
      s.q_row = total_q;
      s.seqlen_q = 0;
    }
    if (b == batch) return s;
    if (seqlens_k.data != nullptr) {
      s.seqlen_k = read(seqlens_k, b);
    } else if (cu_seqlens_k.data != nullptr) {
      s.k_row = read(cu_seqlens_k, b);
      s.seqlen_k = read(cu_seqlens_k, b + 1) - s.k_row;
    } else {
      s.seqlen_k = total_k;
    }
    return s;
  }

  /// Key position of a query row; -1 for padding rows.
  OPENMSA_DEVICE std::int32_t position_of_row(std::int32_t row) const {
    return position_in(cu_seqlens_q.data == nullptr ? 0 : find_sequence(cu_seqlens_q, batch + 1, row), row);
  }

  /// The same for a row of sequence b.
  OPENMSA_DEVICE std::int32_t position_in(std::int32_t b, std::int32_t row) const {
    if (b == batch) return -1;
    const SequenceView view = sequence(b);
    return view.seqlen_k - view.seqlen_q + row - view.q_row;
  }

  OPENMSA_DEVICE std::int32_t page(std::int32_t b, std::int32_t logical) const {
    return block_table.data[b * table_row + logical * block_table.stride];
  }

  /// Where key `position` of sequence b lies among all tokens of the cache, or of the contiguous keys; 0 behind its
  /// end.
  OPENMSA_DEVICE std::int64_t token(std::int32_t b, const SequenceView& view, std::int32_t position) const {
    if (position >= view.seqlen_k) return 0;
    if (page_size == 0) return view.k_row + position;
    return std::int64_t{page(b, position / page_size)} * page_size + position % page_size;
  }
};

/// Prefix sums over sequences, made on the device by launch_index_batch.
struct BatchIndex {
  std::int32_t* tiles;   // [batch + 2] first tile of each sequence (the padding rows come last), total number of tiles
  std::int32_t* blocks;  // [batch + 1] first kv_block of each sequence among all, total
};

/// A tile of queries of one sequence.
struct QueryTile {
  std::int32_t sequence;
  std::int32_t q_row;     // row of its first query
  std::int32_t count;     // queries
  std::int32_t position;  // of its first query; may be negative
  SequenceView view;
};

OPENMSA_DEVICE QueryTile find_tile(const BatchView& batch, const BatchIndex& index, std::int32_t tile,
                                   std::int32_t queries_per_tile) {
  QueryTile result;
  result.sequence = find_sequence({index.tiles, 1}, batch.batch + 1, tile);
  result.view = batch.sequence(result.sequence);
  const std::int32_t first = (tile - index.tiles[result.sequence]) * queries_per_tile;
  const std::int32_t rest = result.view.seqlen_q - first;
  result.q_row = result.view.q_row + first;
  result.count = rest < queries_per_tile ? rest : queries_per_tile;
  result.position =
      result.sequence == batch.batch ? -queries_per_tile : result.view.seqlen_k - result.view.seqlen_q + first;
  return result;
}

}  // namespace openmsa::cuda
