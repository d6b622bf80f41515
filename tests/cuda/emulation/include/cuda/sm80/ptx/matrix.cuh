// The portable kernels' matrix instructions, by the tables of the PTX ISA.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda_runtime.h"

namespace openmsa::cuda::sm80 {

struct MultiplyLane {
  float (&c)[4];
  const std::uint32_t (&a)[4];
  std::uint32_t b[2];
};

template <class Element>
float element_of(std::uint32_t two, int which) {
  Element element;
  element.bits = static_cast<std::uint16_t>(two >> 16 * which);
  return element;
}

/// c[16][8] += a[16][16] b[16][8]: PTX ISA, figures "mma.m16n8k16, fragment layout".
template <class Element>
void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  MultiplyLane mine{c, a, {b0, b1}};
  emulation::meet_warp("mma", &mine, [](void* const(&lanes)[32]) {
    float rows[16][16], columns[16][8];
    for (int i = 0; i < 32; ++i) {
      if (lanes[i] == nullptr) emulation::fail("mma: a lane has ended");
      const auto& lane = *static_cast<const MultiplyLane*>(lanes[i]);
      for (int x = 0; x < 8; ++x) {  // two for each of a[0] to a[3]
        rows[i / 4 + x / 2 % 2 * 8][i % 4 * 2 + x % 2 + x / 4 * 8] = element_of<Element>(lane.a[x / 2], x % 2);
      }
      for (int x = 0; x < 4; ++x)
        columns[i % 4 * 2 + x % 2 + x / 2 * 8][i / 4] = element_of<Element>(lane.b[x / 2], x % 2);
    }
    float sums[16][8] = {};
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) sums[m][n] += rows[m][k] * columns[k][n];
      }
    }
    for (int i = 0; i < 32; ++i) {
      auto& lane = *static_cast<MultiplyLane*>(lanes[i]);
      for (int x = 0; x < 4; ++x) lane.c[x] += sums[i / 4 + x / 2 * 8][i % 4 * 2 + x % 2];
    }
  });
}

struct MatrixLane {
  std::uint32_t address;
  std::uint32_t (&out)[4];
};

/// Lane i's row: i % 8 of matrix i / 8.
inline const std::uint16_t* matrix_row(void* const (&lanes)[32], int matrix, int row) {
  const std::uint32_t address = static_cast<const MatrixLane*>(lanes[matrix * 8 + row])->address;
  const void* const pointer = emulation::shared_pointer(address);
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) emulation::fail("ldmatrix: a row is not aligned");
  return static_cast<const std::uint16_t*>(pointer);
}

template <bool kTransposed>
void load_four_matrices(std::uint32_t address, std::uint32_t (&out)[4]) {
  MatrixLane mine{address, out};
  emulation::meet_warp(kTransposed ? "ldmatrix.trans" : "ldmatrix", &mine, [](void* const(&lanes)[32]) {
    for (int i = 0; i < 32; ++i) {
      for (int m = 0; m < 4; ++m) {
        const auto element = [&](int row, int column) {
          return std::uint32_t{kTransposed ? matrix_row(lanes, m, column)[row] : matrix_row(lanes, m, row)[column]};
        };
        static_cast<MatrixLane*>(lanes[i])->out[m] = element(i / 4, i % 4 * 2) | element(i / 4, i % 4 * 2 + 1) << 16;
      }
    }
  });
}

inline void load_matrices(std::uint32_t address, std::uint32_t (&out)[4]) { load_four_matrices<false>(address, out); }
inline void load_matrices_transposed(std::uint32_t address, std::uint32_t (&out)[4]) {
  load_four_matrices<true>(address, out);
}

}  // namespace openmsa::cuda::sm80
