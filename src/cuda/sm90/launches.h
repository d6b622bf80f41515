// Entry points of the compiled kernels: plain functions, so that host code needs no CUTLASS. The variants are generated
// from the tables in cmake/cuda_variants.cmake.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <openmsa/openmsa.h>

#include "cuda/sm90/append/params.h"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/select/params.h"
#include "cuda/sm90/topk/params.h"

namespace openmsa::cuda::sm90 {

struct Launch {
  cudaStream_t stream;
  int num_sms;
};

/// index.tiles and index.blocks for tiles of `queries_per_tile`.
void index_batch(const BatchView& batch, const BatchIndex& index, int queries_per_tile, Launch launch);

/// Schedules of p.chunk and the chunks behind it, `chunks` in all.
void schedule(const PrefillParams& p, int chunks, Launch launch);

/// Standalone top-k over a score matrix.
void topk(const TopkParams& p, Launch launch);

/// New tokens of `dtype` into paged caches.
void append(const AppendParams& p, openmsa_dtype dtype, Launch launch);

struct PrefillMaps {
  CUtensorMap gathered_q;  // boxes of one query
  CUtensorMap union_q;     // boxes of half a tile's queries
  CUtensorMap k;
  CUtensorMap v;
};

/// The attention of p.chunk after its schedule.
using PrefillFunction = void(const PrefillParams& p, const PrefillMaps& maps, Launch launch);

/// Index branch with selection, or block scores; max_tiles bounds the number of query tiles.
using SelectFunction = void(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch);

/// Candidates of the index branch of a decode step, and topk_indices from them.
using DecodeSelectFunction = void(const DecodeSelectParams& p, const CUtensorMap& index_k, Launch launch);
void decode_choose(const DecodeSelectParams& p, Launch launch);

/// Attention of a decode step.
using DecodeAttendFunction = void(const DecodeAttendParams& p, const CUtensorMap& k, const CUtensorMap& v,
                                  Launch launch);

struct SelectVariant {
  openmsa_dtype dtype;   // of index_q
  openmsa_dtype cached;  // of index_k
  int dim;
  int block_size;
  int capacity;  // longest topk; 0: block scores
  SelectFunction* function;
};
struct PrefillVariant {
  openmsa_dtype dtype;
  int dim;
  int block_size;
  PrefillFunction* function;
};
struct DecodeSelectVariant {
  openmsa_dtype dtype;   // of index_q
  openmsa_dtype cached;  // of index_k
  int dim;
  DecodeSelectFunction* function;
};
struct DecodeAttendVariant {
  openmsa_dtype dtype;   // of q
  openmsa_dtype cached;  // of k and v
  int dim;
  DecodeAttendFunction* function;
};

}  // namespace openmsa::cuda::sm90
