// How dense attention of a decode step is divided over the CTAs of a grid, from the lengths alone.
//
// An item is a tile of queries of one sequence with the heads of one KV head. Its units are the key tiles of the
// sequence, 64 keys each, at least one. Put end to end, sequence by sequence (the padding rows last), head by head, tile
// by tile, the units of all items are shared out evenly: CTA c takes [c per_cta, (c + 1) per_cta). A segment is what a
// CTA takes of one item:
//
//   units     | item 0               | item 1 | item 2                    |
//   CTAs      | 0        | 1        | 2        | 3        | 4        | 5  |
//   segments  | 0        | 1    |2  | 3 |4     | ...
//   slots       1          0     -    1  0       0          0
//
// A segment that is not a whole item leaves its result in one of its CTA's two slots: 1 where the item begins with it,
// else 0. An item's segments are merged in the order of keys.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"

namespace openmsa::cuda::sm90::dense {

inline constexpr std::int32_t kUnitKeys = 64;
inline constexpr std::int32_t kSlots = 2;  // of a CTA

/// a / b for 0 <= a < 2^44, b > 0. The compiler's 64-bit division is a call, in front of which registers are saved.
OPENMSA_DEVICE std::int64_t divide(std::int64_t a, std::int64_t b) {
#ifdef __CUDA_ARCH__
  const float inverse = __fdividef(1, static_cast<float>(b));
  auto quotient = static_cast<std::int64_t>(static_cast<float>(a) * inverse);  // within 2^-21 of itself
  quotient += static_cast<std::int64_t>(static_cast<float>(a - quotient * b) * inverse);
  const std::int64_t rest = a - quotient * b;
  return quotient + (rest >= b ? 1 : 0) - (rest < 0 ? 1 : 0);
#else
  return a / b;
#endif
}

/// The items of one sequence.
struct SequenceItems {
  std::int32_t query_tiles;
  std::int32_t key_tiles;  // units of each item

  /// Units of all of them.
  OPENMSA_DEVICE std::int64_t units(std::int32_t heads) const { return std::int64_t{query_tiles} * heads * key_tiles; }
};

OPENMSA_DEVICE SequenceItems sequence_items(const SequenceView& view, std::int32_t tile_queries) {
  const std::int32_t key_tiles = view.seqlen_k <= kUnitKeys ? 1 : (view.seqlen_k - 1) / kUnitKeys + 1;
  return {(view.seqlen_q + tile_queries - 1) / tile_queries, key_tiles};
}

/// Units of every CTA of the grid, all but the last ones alike.
OPENMSA_DEVICE std::int64_t units_per_cta(std::int64_t units, std::int32_t ctas) {
  return units == 0 ? 1 : divide(units + ctas - 1, ctas);
}

/// Units [begin, end) of all: those of an item.
struct UnitRange {
  std::int64_t begin;
  std::int64_t end;
};

/// What CTA `cta` takes of an item that it has a share in: key tiles [begin, end).
struct Segment {
  std::int32_t begin;
  std::int32_t end;
  bool is_whole;

  OPENMSA_DEVICE Segment(const UnitRange& item, std::int64_t per_cta, std::int32_t cta) {
    const std::int64_t first = cta * per_cta, last = first + per_cta;
    begin = static_cast<std::int32_t>((first > item.begin ? first : item.begin) - item.begin);
    end = static_cast<std::int32_t>((last < item.end ? last : item.end) - item.begin);
    is_whole = begin == 0 && end == item.end - item.begin;
  }
  OPENMSA_DEVICE bool begins_item() const { return begin == 0; }
  OPENMSA_DEVICE std::int32_t slot() const { return begins_item() ? 1 : 0; }
};

}  // namespace openmsa::cuda::sm90::dense
