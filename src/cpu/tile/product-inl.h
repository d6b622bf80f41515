// Products of small tiles in vector registers, for one instruction set and one kind of element. Included by the files
// that compile for an instruction set, inside their namespace and their target attributes; so there is no include
// guard, and nothing here is seen by other files.
//
// A policy P says how elements become vectors:
//   Element          of the right operand, and of the left one where that has no type of its own
//   kPerColumn       elements of one column and one step of the sum: 1, or 2 for pairs
//   kColumns         columns of a vector of sums
//   kMaxVectors      vectors of a register block
//   rows(vectors)    rows of a register block so wide: as many as leave their sums in registers
//   Vec, Side        vectors of fp32 sums, and of an operand
//   left(p), right(p)  one step of a row in every lane; kColumns columns of one step
//   RowElement, kLoadedSteps  of rows that lie along the lanes, which may be stored differently
//   load_steps(rows, p, steps)  kLoadedSteps steps, from p on, of kColumns such rows, each row in its lane
//   mul_add(left, right, sum), zero, set, load, store, multiply, max_number

#if HWY_COMPILER_GCC_ACTUAL  // GCC 12 would keep operands of some register blocks on the stack
#pragma GCC optimize("ira-region=all")
#endif

/// Fetches what an Ahead names, line by line, evenly spread over the steps of a product.
class Prefetcher {
 public:
  Prefetcher(const Ahead& ahead, std::int64_t steps)
      : rows_(ahead.rows),
        lines_per_row_(core::ceil_div(ahead.row_bytes, kLineBytes)),
        left_(ahead.count * lines_per_row_),
        per_step_(left_ == 0 ? 0 : core::ceil_div(left_, std::max<std::int64_t>(steps, 1))),
        past_first_level_(left_ != 0 && fetches_past_first_level()) {}

  bool has_work() const { return left_ > 0; }

  HWY_INLINE void step() {
    const std::byte* line = line_;  // in registers: what is stored here would be read back in the next round
    std::int64_t left_in_row = left_in_row_;
    const std::int64_t lines = std::min(per_step_, left_);
    for (std::int64_t i = 0; i < lines; ++i) {
      if (left_in_row == 0) {
        line = *rows_++;
        left_in_row = lines_per_row_;
      }
      if (past_first_level_) {
        __builtin_prefetch(line, 0, 2);
      } else {
        hwy::Prefetch(line);
      }
      line += kLineBytes;
      --left_in_row;
    }
    line_ = line;
    left_in_row_ = left_in_row;
    left_ -= lines;
  }

 private:
  static constexpr std::int64_t kLineBytes = 64;
  const std::byte* const* rows_;
  const std::byte* line_ = nullptr;
  std::int64_t lines_per_row_;
  std::int64_t left_in_row_ = 0, left_;
  std::int64_t per_step_;
  bool past_first_level_;
};

/// Steps of a sum between two looks at the prefetcher.
inline constexpr std::int64_t kChunk = 16;

/// acc[i][v] += sum_p a(i,p) b[p][v-th vector], in order of p.
template <class P, int kRows, int kVectors, class A>
HWY_INLINE void accumulate_block(std::int64_t k, A a, const typename P::Element* HWY_RESTRICT b, std::int64_t ldb,
                                 Prefetcher& prefetcher, typename P::Vec (&acc)[kRows][kVectors]) {
  decltype(a.data) rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = a.data + i * a.row;
  const std::int64_t chunk = prefetcher.has_work() ? kChunk : k;  // a look costs 10 % where there is nothing to fetch
  for (std::int64_t begin = 0; begin < k; begin += chunk) {
    prefetcher.step();
    const std::int64_t end = begin + chunk < k ? begin + chunk : k;
    for (std::int64_t p = begin; p < end; ++p) {
      typename P::Side right[kVectors];
      for (int v = 0; v < kVectors; ++v) right[v] = P::right(b + p * ldb + v * P::kColumns * P::kPerColumn);
      for (int i = 0; i < kRows; ++i) {
        const typename P::Side left = P::left(rows[i] + p * a.column);
        for (int v = 0; v < kVectors; ++v) acc[i][v] = P::mul_add(left, right[v], acc[i][v]);
      }
    }
  }
}

template <class P, int kRows, int kVectors, class A>
HWY_INLINE void matmul_block(std::int64_t k, A a, const typename P::Element* b, std::int64_t ldb, float* c,
                             std::int64_t ldc, float scale, bool accumulate, Prefetcher& prefetcher) {
  typename P::Vec acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) acc[i][v] = accumulate ? P::load(c + i * ldc + v * P::kColumns) : P::zero();
  }
  accumulate_block<P, kRows, kVectors>(k, a, b, ldb, prefetcher, acc);
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) P::store(P::multiply(acc[i][v], scale), c + i * ldc + v * P::kColumns);
  }
}

/// All rows of one panel of columns, in blocks of kRows and one smaller one for the rest.
template <class P, int kRows, int kVectors, class A>
HWY_INLINE void matmul_panel(std::int64_t m, std::int64_t k, A a, const typename P::Element* b, std::int64_t ldb,
                             float* c, std::int64_t ldc, float scale, bool accumulate, Prefetcher& prefetcher) {
  for (; m >= kRows; m -= kRows) {
    matmul_block<P, kRows, kVectors>(k, a, b, ldb, c, ldc, scale, accumulate, prefetcher);
    a.data += kRows * a.row;
    c += kRows * ldc;
  }
  if constexpr (kRows > 1) {
    if (m > 0) {
      matmul_panel<P, kRows - 1, kVectors>(m, k, a, b, ldb, c, ldc, scale, accumulate, prefetcher);
    }
  }
}

/// Calls body(width, j) for panels of columns that cover n: as wide as a register block, and one for the rest.
/// `width` is a std::integral_constant: the panel's vectors.
template <class P, int kVectors = P::kMaxVectors, class Body>
HWY_INLINE void for_each_panel(std::int64_t n, std::int64_t j, const Body& body) {
  for (; j + kVectors * P::kColumns <= n; j += kVectors * P::kColumns) {
    body(std::integral_constant<int, kVectors>(), j);
  }
  if constexpr ((kVectors - 1) * P::kColumns >= kLanes) {  // of which n is a multiple
    if (j < n) for_each_panel<P, kVectors - 1>(n, j, body);
  }
}

/// Looks at the prefetcher in a product of m rows and n columns.
template <class P>
std::int64_t count_steps(std::int64_t m, std::int64_t n, std::int64_t k) {
  std::int64_t blocks = 0;
  for_each_panel<P>(n, 0, [&](auto width, std::int64_t) { blocks += core::ceil_div(m, P::rows(width)); });
  return blocks * core::ceil_div(k, kChunk);
}

/// c[i][j] = scale * sum_p a(i,p) b[p][j], the sum begun with c[i][j] when `accumulate`.
template <class P, class A>
HWY_INLINE void matmul_tile(std::int64_t m, std::int64_t n, std::int64_t k, A a, const typename P::Element* b,
                            std::int64_t ldb, float* c, std::int64_t ldc, float scale, bool accumulate) {
  Prefetcher prefetcher(a.ahead, count_steps<P>(m, n, k));
  for_each_panel<P>(n, 0, [&](auto width, std::int64_t j) {
    matmul_panel<P, P::rows(width), width>(m, k, a, b + j * P::kPerColumn, ldb, c + j, ldc, scale, accumulate,
                                           prefetcher);
  });
}

template <class P, int kRows, int kVectors, class A>
HWY_INLINE void column_max_panel(std::int64_t m, std::int64_t k, A a, const typename P::Element* b, std::int64_t ldb,
                                 Prefetcher& prefetcher, typename P::Vec (&top)[kVectors]) {
  for (; m >= kRows; m -= kRows) {
    typename P::Vec acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) acc[r][v] = P::zero();
    }
    accumulate_block<P, kRows, kVectors>(k, a, b, ldb, prefetcher, acc);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) top[v] = P::max_number(top[v], acc[r][v]);
    }
    a.data += kRows * a.row;
  }
  if constexpr (kRows > 1) {
    if (m > 0) column_max_panel<P, kRows - 1, kVectors>(m, k, a, b, ldb, prefetcher, top);
  }
}

template <class P, int kRows, int kVectors, class A>
HWY_INLINE void column_max_columns(std::int64_t m, std::int64_t k, A a, const typename P::Element* b, std::int64_t ldb,
                                   float* top, Prefetcher& prefetcher) {
  typename P::Vec best[kVectors];
  for (int v = 0; v < kVectors; ++v) best[v] = P::lowest();
  column_max_panel<P, kRows, kVectors>(m, k, a, b, ldb, prefetcher, best);
  for (int v = 0; v < kVectors; ++v) P::store(best[v], top + v * P::kColumns);
}

/// top[j] = max_i sum_p a(i,p) b[p][j], NaN ignored.
template <class P, class A>
HWY_INLINE void matmul_column_max_tile(std::int64_t m, std::int64_t n, std::int64_t k, A a,
                                       const typename P::Element* b, std::int64_t ldb, float* top) {
  Prefetcher prefetcher(a.ahead, count_steps<P>(m, n, k));
  for_each_panel<P>(n, 0, [&](auto width, std::int64_t j) {
    column_max_columns<P, P::rows(width), width>(m, k, a, b + j * P::kPerColumn, ldb, top + j, prefetcher);
  });
}

/// Consecutive rows of an operand; those past `count`, where they are not whole, are the last one again.
template <class Element, bool kAreWhole>
struct Rows {
  const Element* first;
  std::int64_t ld;
  std::int64_t count;
  HWY_INLINE const Element* at(std::int64_t i) const { return first + (kAreWhole ? i : std::min(i, count - 1)) * ld; }
};

/// kColumns rows of the left operand, along the lanes, by n rows of q.
template <class P, int n, class Left>
HWY_INLINE void row_products_block(std::int64_t k, Left rows, const typename P::Element* HWY_RESTRICT q,
                                   std::int64_t ldq, float* HWY_RESTRICT s, std::int64_t lds, float scale,
                                   Prefetcher& prefetcher) {
  typename P::Vec acc[n];
  for (int j = 0; j < n; ++j) acc[j] = P::zero();
  for (std::int64_t p = 0; p < k; p += P::kLoadedSteps) {
    prefetcher.step();
    typename P::Side steps[P::kLoadedSteps];
    P::load_steps(rows, p, steps);
    for (int i = 0; i < P::kLoadedSteps; ++i) {
      for (int j = 0; j < n; ++j) {
        acc[j] = P::mul_add(P::left(q + j * ldq + (p + i) * P::kPerColumn), steps[i], acc[j]);
      }
    }
  }
  for (int j = 0; j < n; ++j) P::store(P::multiply(acc[j], scale), s + j * lds);
}

template <class P, int n, class A>
HWY_INLINE void row_products_of(std::int64_t m, std::int64_t k, A a, const typename P::Element* q, std::int64_t ldq,
                                float* s, std::int64_t lds, float scale) {
  using Element = typename P::RowElement;
  Prefetcher prefetcher(a.ahead, core::ceil_div(m, P::kColumns) * (k / P::kLoadedSteps));
  std::int64_t i = 0;
  for (; i + P::kColumns <= m; i += P::kColumns) {
    const Rows<Element, true> rows = {a.data + i * a.row, a.row, P::kColumns};
    row_products_block<P, n>(k, rows, q, ldq, s + i, lds, scale, prefetcher);
  }
  if (i == m) return;
  const Rows<Element, false> rows = {a.data + i * a.row, a.row, m - i};
  row_products_block<P, n>(k, rows, q, ldq, s + i, lds, scale, prefetcher);
}

/// s[j][i] = scale * sum_p a(i,p) q[j][p], in order of p; up to kFewRows rows of q.
template <class P, int n = 1, class A>
HWY_INLINE void row_products_tile(std::int64_t m, std::int64_t rows, std::int64_t k, A a, const typename P::Element* q,
                                  std::int64_t ldq, float* s, std::int64_t lds, float scale) {
  if constexpr (n < kFewRows) {
    if (rows > n) return row_products_tile<P, n + 1>(m, rows, k, a, q, ldq, s, lds, scale);
  }
  row_products_of<P, n>(m, k, a, q, ldq, s, lds, scale);
}
