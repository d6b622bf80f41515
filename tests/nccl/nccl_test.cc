// libopenmsa_nccl with ranks in threads: the selections of one process, bit by bit, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <openmsa/openmsa_nccl.h>

#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "judge/shards.h"
#include "support/run.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;

/// function(rank, comm) in a thread per rank.
void on_ranks(int count, const std::function<void(int, ncclComm_t)>& function) {
  std::vector<ncclComm_t> comms(count);
  ncclCommInitAll(comms.data(), count, nullptr);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << count);
      function(rank, comms[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const ncclComm_t comm : comms) ncclCommDestroy(comm);
}

struct Destroy {
  void operator()(openmsa_nccl_layer* layer) const { openmsa_nccl_destroy(layer); }
};
using Divided = std::unique_ptr<openmsa_nccl_layer, Destroy>;

openmsa_status create(const Config* config, openmsa_nccl_division division, ncclComm_t comm, Divided& layer) {
  int count = 0;
  ncclCommCount(comm, &count);
  Workspace workspace;
  openmsa_nccl_layer* made = nullptr;
  const openmsa_status status =
      openmsa_nccl_create(config, division, comm, workspace.reserve(openmsa_nccl_create_bytes(count)), &made);
  layer.reset(made);
  EXPECT_EQ(status == OPENMSA_SUCCESS, made != nullptr);
  return status;
}

Divided divided(const Config& config, openmsa_nccl_division division, ncclComm_t comm) {
  Divided layer;
  EXPECT_EQ(create(&config, division, comm, layer), OPENMSA_SUCCESS) << openmsa_nccl_last_error();
  return layer;
}

/// Memory of exactly what the layer asks for.
openmsa_workspace workspace_of(const Divided& layer, openmsa_op op, Workspace& workspace) {
  std::size_t bytes = 0;
  EXPECT_EQ(openmsa_nccl_workspace_bytes(layer.get(), op, &bytes), OPENMSA_SUCCESS) << openmsa_nccl_last_error();
  openmsa_workspace result = workspace.reserve(bytes);
  result.bytes = bytes;
  return result;
}

/// Heads [rank * share, (rank + 1) * share) of dimension `axis`, contiguous.
Buffer heads_of(const Buffer& all, std::size_t axis, int count, int rank) {
  Shape shape = all.shape();
  shape[axis] /= count;
  std::int64_t inner = 1;
  for (std::size_t d = axis; d < shape.size(); ++d) inner *= shape[d];
  Buffer result(all.dtype(), shape);
  for (std::int64_t i = 0; i < result.size(); ++i)
    result.set(i, all[i / inner * inner * count + rank * inner + i % inner]);
  return result;
}

/// As the result of a rank, whose heads are outermost in memory: [.., total_q, heads, channels] with one slice.
Buffer heads_outermost(const Buffer& all) {
  Shape shape = all.shape();
  shape.insert(shape.begin(), 1);
  const std::int64_t total_q = shape[1], channels = shape.size() == 4 ? shape[3] : 1;
  Shape strides = {0, channels, total_q * channels, 1};
  strides.resize(shape.size());
  Buffer result = Buffer::strided(all.dtype(), shape, strides);
  for (std::int64_t i = 0; i < all.size(); ++i) result.set(i, all[i]);
  return result;
}

Tensors batch_of(const Layer& layer) {
  Tensors result = tensors();
  result.cu_seqlens_q = layer.tensors.at("cu_seqlens_q").view();
  return result;
}

/// 24 query and 12 KV heads; prompts, chunks, decodes, fewer kv_blocks than ranks, none, rows of no sequence.
Layer ragged(openmsa_dtype dtype = OPENMSA_FLOAT32) {
  return make_layer({.dtype = dtype,
                     .num_heads_q = 24,
                     .num_heads_kv = 12,
                     .head_dim = 16,
                     .index_dim = 16,
                     .topk = 3,
                     .num_init_blocks = 1,
                     .page_size = 16,
                     .seqlens_q = {40, 1, 0, 33, 1},
                     .seqlens_k = {40, 700, 0, 170, 1},
                     .padding_q = 2})
      .on(OPENMSA_BACKEND_CPU);
}

class Nccl : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Nccl, testing::Values(1, 2, 3, 4));

TEST_P(Nccl, SelectionsAreThoseOfOneProcess) {
  const int count = GetParam();
  const Layer layer = ragged();
  const Buffer expected = run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  for (const openmsa_nccl_division division : {OPENMSA_NCCL_HEADS, OPENMSA_NCCL_KEYS}) {
    SCOPED_TRACE(testing::Message() << "division " << division);
    on_ranks(count, [&](int rank, ncclComm_t comm) {
      const Divided made = divided(layer.config, division, comm);
      const Buffer candidates = run(shard_of(layer, count, rank), OPENMSA_OP_SELECT_CANDIDATES).at("candidates");
      const Buffer wanted = division == OPENMSA_NCCL_HEADS ? heads_of(expected, 0, count, rank) : expected;
      Buffer got(OPENMSA_INT32, wanted.shape());
      Tensors call = batch_of(layer);
      call.seqlens_k = layer.tensors.at("seqlens_k").view();
      call.candidates = candidates.view();
      call.topk_indices = got.view();
      Workspace memory;
      const openmsa_workspace workspace = workspace_of(made, OPENMSA_OP_MERGE_CANDIDATES, memory);
      for (int i = 0; i < 2; ++i) {
        ASSERT_EQ(openmsa_nccl_merge_candidates(made.get(), &call, workspace), OPENMSA_SUCCESS)
            << openmsa_nccl_last_error();
        EXPECT_TRUE(got.same_bits(wanted));
      }
    });
  }
}

/// Bit by bit what openmsa_merge_partials makes of the same parts; in the layer's dtype and in fp32.
TEST_P(Nccl, PartsMergeAsInOneProcess) {
  const int count = GetParam();
  for (const openmsa_dtype dtype : {OPENMSA_FLOAT32, OPENMSA_BFLOAT16}) {
    for (const openmsa_dtype part_dtype : {OPENMSA_FLOAT32, dtype}) {
      Layer layer = ragged(dtype);
      layer.add({{"topk_indices", run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")}});
      std::vector<Buffer> o, lse;
      for (int rank = 0; rank < count; ++rank) {
        TensorMap part = poisoned_outputs(layer, OPENMSA_OP_SPARSE_ATTENTION);
        part["o"] = Buffer(part_dtype, part.at("o").shape());
        run_into(shard_of(layer, count, rank), OPENMSA_OP_SPARSE_ATTENTION, part);
        o.push_back(part.at("o"));
        lse.push_back(part.at("lse"));
      }
      Layer merge = layer;
      merge.config.shard_count = count;
      merge.add({{"partial_o", stacked(o)}, {"partial_lse", stacked(lse)}});
      const TensorMap expected = run(merge, OPENMSA_OP_MERGE_PARTIALS);
      on_ranks(count, [&](int rank, ncclComm_t comm) {
        const Divided made = divided(layer.config, OPENMSA_NCCL_KEYS, comm);
        const Buffer partial_o = heads_outermost(o[rank]), partial_lse = heads_outermost(lse[rank]);
        const Buffer o_wanted = heads_of(expected.at("o"), 1, count, rank);
        const Buffer lse_wanted = heads_of(expected.at("lse"), 1, count, rank);
        Buffer o_got(dtype, o_wanted.shape()), lse_got(OPENMSA_FLOAT32, lse_wanted.shape());
        Tensors call = batch_of(layer);
        call.partial_o = partial_o.view();
        call.partial_lse = partial_lse.view();
        call.o = o_got.view();
        call.lse = lse_got.view();
        Workspace memory;
        ASSERT_EQ(openmsa_nccl_merge_partials(made.get(), &call, workspace_of(made, OPENMSA_OP_MERGE_PARTIALS, memory)),
                  OPENMSA_SUCCESS)
            << openmsa_nccl_last_error();
        EXPECT_TRUE(o_got.same_bits(o_wanted));
        EXPECT_TRUE(lse_got.same_bits(lse_wanted));
      });
    }
  }
}

/// Rows of the rank's pieces, each as long as a whole one; what is past them is poison.
Buffer piece_rows(const Buffer& all, const openmsa_nccl_prompt& prompt) {
  Shape shape = all.shape();
  const std::int64_t inner = all.size() / shape[0];
  shape[0] = 2 * prompt.piece_tokens;
  Buffer result(all.dtype(), shape);
  for (int piece = 0; piece < 2; ++piece) {
    for (std::int64_t i = 0; i < (prompt.end[piece] - prompt.begin[piece]) * inner; ++i) {
      result.set(piece * prompt.piece_tokens * inner + i, all[prompt.begin[piece] * inner + i]);
    }
  }
  return result;
}

/// The rank's rows, one piece after the other, without gaps.
Buffer own_rows(const Buffer& all, const openmsa_nccl_prompt& prompt) {
  Shape shape = all.shape();
  const std::int64_t inner = all.size() / shape[0];
  shape[0] = prompt.end[0] - prompt.begin[0] + prompt.end[1] - prompt.begin[1];
  Buffer result(all.dtype(), shape);
  std::int64_t next = 0;
  for (int piece = 0; piece < 2; ++piece) {
    for (std::int64_t i = prompt.begin[piece] * inner; i < prompt.end[piece] * inner; ++i) result.set(next++, all[i]);
  }
  return result;
}

TEST_P(Nccl, PromptsInPieces) {
  const int count = GetParam();
  for (const std::int64_t seqlen : {1, 33, 130, 512, 1000}) {
    SCOPED_TRACE(testing::Message() << seqlen << " tokens");
    const Layer layer = make_layer({.head_dim = 16, .index_dim = 16, .seqlens_q = {seqlen}, .seqlens_k = {seqlen}})
                            .on(OPENMSA_BACKEND_CPU);
    const Buffer expected = run(layer, OPENMSA_OP_MSA_ATTENTION).at("o");
    Config config = layer.config;
    config.page_size = 16;
    config.max_batch = 2;
    std::vector<std::int64_t> tokens(count);
    on_ranks(count, [&](int rank, ncclComm_t comm) {
      const Divided made = divided(config, OPENMSA_NCCL_QUERIES, comm);
      openmsa_nccl_prompt prompt{};
      ASSERT_EQ(openmsa_nccl_prompt_pieces(made.get(), seqlen, &prompt), OPENMSA_SUCCESS) << openmsa_nccl_last_error();
      tokens[rank] = prompt.end[0] - prompt.begin[0] + prompt.end[1] - prompt.begin[1];
      std::vector<std::int32_t> pages(prompt.num_pages);
      ASSERT_EQ(openmsa_nccl_prompt_pages(made.get(), seqlen, pages.data()), OPENMSA_SUCCESS);

      const Buffer k = piece_rows(layer.tensors.at("k"), prompt), v = piece_rows(layer.tensors.at("v"), prompt);
      const Buffer index_k = piece_rows(layer.tensors.at("index_k"), prompt);
      Buffer k_cache(OPENMSA_FLOAT32, {prompt.num_pages, 16, 2, 16}), v_cache = k_cache;
      Buffer index_k_cache(OPENMSA_FLOAT32, {prompt.num_pages, 16, 16});
      Tensors keys = tensors();
      keys.index_k = index_k.view();
      keys.index_k_cache = index_k_cache.view();
      ASSERT_EQ(openmsa_nccl_gather_keys(made.get(), &keys, nullptr), OPENMSA_SUCCESS) << openmsa_nccl_last_error();
      keys = tensors();
      keys.k = k.view();
      keys.v = v.view();
      keys.k_cache = k_cache.view();
      keys.v_cache = v_cache.view();
      ASSERT_EQ(openmsa_nccl_gather_keys(made.get(), &keys, nullptr), OPENMSA_SUCCESS) << openmsa_nccl_last_error();

      const std::int64_t first = prompt.end[0] - prompt.begin[0];
      const Buffer bounds = int_buffer({0, first, tokens[rank]}), lengths = int_buffer({prompt.end[0], prompt.end[1]});
      Buffer table(OPENMSA_INT32, {2, prompt.num_pages});
      for (std::int64_t i = 0; i < 2 * prompt.num_pages; ++i) table.set(i, pages[i % prompt.num_pages]);
      const Buffer q = own_rows(layer.tensors.at("q"), prompt), index_q = own_rows(layer.tensors.at("index_q"), prompt);
      Buffer o(OPENMSA_FLOAT32, q.shape());
      Tensors call = tensors();
      call.cu_seqlens_q = bounds.view();
      call.seqlens_k = lengths.view();
      call.block_table = table.view();
      call.q = q.view();
      call.index_q = index_q.view();
      call.k_cache = k_cache.view();
      call.v_cache = v_cache.view();
      call.index_k_cache = index_k_cache.view();
      call.o = o.view();
      Workspace workspace;
      Plan(config).run(OPENMSA_OP_MSA_ATTENTION, call, workspace);
      EXPECT_TRUE(o.same_bits(own_rows(expected, prompt)));
    });
    EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}), seqlen) << "every token on one rank";
  }
}

// ------------------------------------------------------------------------------------------------------ refusals

/// What each rank is told when it creates a layer of its own configuration.
std::vector<std::string> creation_errors(const std::vector<Config>& configs,
                                         std::vector<openmsa_nccl_division> divisions) {
  std::vector<std::string> errors(configs.size());
  on_ranks(static_cast<int>(configs.size()), [&](int rank, ncclComm_t comm) {
    Divided made;
    EXPECT_NE(create(&configs[rank], divisions[rank % divisions.size()], comm, made), OPENMSA_SUCCESS);
    errors[rank] = openmsa_nccl_last_error();
  });
  return errors;
}

TEST(NcclRefusals, RanksThatDifferAreToldSo) {
  std::vector<Config> configs(4, ragged().config);
  configs[3].topk = 7;
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_HEADS}),
              testing::Each("topk: expected the same on all ranks, got 3 on rank 0 and 7 on rank 3"));
  configs[3].topk = 3;
  configs[1].softmax_scale = 0.25;
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_KEYS}),
              testing::Each("softmax_scale: expected the same on all ranks, got 0 on rank 0 and 0.25 on rank 1"));
  configs[1].softmax_scale = 0;
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_KEYS, OPENMSA_NCCL_HEADS}),
              testing::Each("division: expected the same on all ranks, got 2 on rank 0 and 1 on rank 1"));
}

/// Nobody waits for a rank that is refused its own arguments.
TEST(NcclRefusals, AllRanksLearnOfOneThatIsRefused) {
  std::vector<Config> configs(3, ragged().config);
  configs[1].head_dim = 13;
  std::vector<std::string> errors = creation_errors(configs, {OPENMSA_NCCL_KEYS});
  EXPECT_THAT(errors[1], HasSubstr("head_dim: expected a multiple of 8"));
  const char* const others = "config: expected one that all ranks can use, got one that rank 1 was refused, whose own ";
  EXPECT_THAT(errors[0], HasSubstr(others));
  EXPECT_THAT(errors[2], HasSubstr(others));

  configs = std::vector<Config>(5, ragged().config);
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_HEADS}),
              testing::Each("num_heads_q: expected a multiple of the 5 ranks, got 24"));
  configs.resize(2);
  for (Config& config : configs) config.shard_count = 3;
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_KEYS}),
              testing::Each("shard_count: expected 0 or the 2 ranks of the communicator, got 3"));
  for (Config& config : configs) config.shard_count = 2;
  EXPECT_THAT(creation_errors(configs, {OPENMSA_NCCL_KEYS}),
              testing::Contains("shard_rank: expected 1 as of the communicator, got 0"));
  configs[1].shard_rank = 1;
  EXPECT_THAT(creation_errors(configs, {static_cast<openmsa_nccl_division>(9)}),
              testing::Each("division: expected HEADS (1), KEYS (2) or QUERIES (3), got 9"));
}

/// What NCCL says of a call, here of ranks with unequal numbers of query tokens, comes back as a status with its text.
TEST(NcclRefusals, ErrorsOfNccl) {
  const Layer layer = ragged();
  for (const openmsa_nccl_division division : {OPENMSA_NCCL_HEADS, OPENMSA_NCCL_KEYS}) {
    on_ranks(2, [&](int rank, ncclComm_t comm) {
      const Divided made = divided(layer.config, division, comm);
      const Buffer candidates(OPENMSA_INT64, {12, 70 + rank, 3});
      Tensors call = tensors();
      call.candidates = candidates.view();
      Workspace memory;
      const openmsa_workspace workspace = workspace_of(made, OPENMSA_OP_MERGE_CANDIDATES, memory);
      EXPECT_EQ(openmsa_nccl_merge_candidates(made.get(), &call, workspace), OPENMSA_CUDA_ERROR);
      const char* const function = division == OPENMSA_NCCL_HEADS ? "ncclGroupEnd" : "ncclAllGather";
      EXPECT_EQ(openmsa_nccl_last_error(), function + std::string(": invalid usage"));
    });
  }
}

class NcclCalls : public testing::Test {
 protected:
  void SetUp() override { ncclCommInitAll(&comm_, 1, nullptr); }
  void TearDown() override { ncclCommDestroy(comm_); }

  void expect_error(openmsa_status status, const std::string& text) {
    EXPECT_EQ(status, OPENMSA_INVALID_ARGUMENT);
    EXPECT_THAT(openmsa_nccl_last_error(), HasSubstr(text));
  }

  ncclComm_t comm_ = nullptr;
  Workspace memory_;
};

TEST_F(NcclCalls, CreationRefusesWhatItCannotUse) {
  const Config config = ragged().config;
  openmsa_nccl_layer* layer = nullptr;
  const openmsa_workspace workspace = memory_.reserve(openmsa_nccl_create_bytes(1));
  expect_error(openmsa_nccl_create(&config, OPENMSA_NCCL_KEYS, nullptr, workspace, &layer), "comm: expected a communi");
  expect_error(openmsa_nccl_create(nullptr, OPENMSA_NCCL_KEYS, comm_, workspace, &layer),
               "config: expected one, got NULL");
  expect_error(openmsa_nccl_create(&config, OPENMSA_NCCL_KEYS, comm_, workspace, nullptr), "layer: expected a place");
  expect_error(openmsa_nccl_create(&config, OPENMSA_NCCL_KEYS, comm_, {}, &layer),
               "workspace: expected at least 976 bytes, got 0");
  Config later = config;
  later.struct_size += 8;
  expect_error(openmsa_nccl_create(&later, OPENMSA_NCCL_KEYS, comm_, workspace, &layer),
               "config.struct_size: expected at most");
  EXPECT_EQ(layer, nullptr);
}

TEST_F(NcclCalls, CandidatesOfOtherShapes) {
  const Layer layer = ragged();
  const Divided made = divided(layer.config, OPENMSA_NCCL_KEYS, comm_);
  const openmsa_workspace workspace = workspace_of(made, OPENMSA_OP_MERGE_CANDIDATES, memory_);
  Buffer indices(OPENMSA_INT32, {12, 77, 3});
  const auto merge = [&](const Buffer& candidates, openmsa_workspace given) {
    Tensors call = batch_of(layer);
    call.seqlens_k = layer.tensors.at("seqlens_k").view();
    call.candidates = candidates.view();
    call.topk_indices = indices.view();
    return openmsa_nccl_merge_candidates(made.get(), &call, given);
  };
  const Buffer fits(OPENMSA_INT64, {12, 77, 3});
  const char* const shape = "candidates: expected [num_heads_kv, total_q, topk], contiguous, as of the layer, got ";
  expect_error(merge(Buffer(OPENMSA_INT64, {6, 77, 3}), workspace),
               shape + std::string("[6 (stride 231), 77 (stride 3), 3"));
  expect_error(merge(Buffer::strided(OPENMSA_INT64, {12, 77, 3}, {3, 36, 1}), workspace),
               shape + std::string("[12 (stride 3)"));
  expect_error(merge(Buffer(), workspace), shape + std::string("none"));
  expect_error(merge(Buffer(OPENMSA_INT32, {12, 77, 3}), workspace), "candidates: expected int64, got dtype 5");
  expect_error(merge(Buffer(OPENMSA_INT64, {12, 1000, 3}), workspace),
               "expected at most max_total_q = 77 query tokens, got 1000");
  expect_error(merge(fits, {workspace.data, workspace.bytes - 1, nullptr}), "workspace: expected at least");
  expect_error(merge(fits, {}), "workspace: expected memory, got NULL");
  EXPECT_TRUE(indices.same_bits(Buffer(OPENMSA_INT32, {12, 77, 3}))) << "nothing was written";
  expect_error(openmsa_nccl_merge_candidates(nullptr, nullptr, workspace), "layer: expected one, got NULL");
  expect_error(openmsa_nccl_merge_candidates(made.get(), nullptr, workspace), "tensors: expected one, got NULL");
  /// What openmsa refuses, in its words.
  expect_error(merge(fits, workspace), "all_candidates: expected");
}

TEST_F(NcclCalls, PartsOfOtherShapes) {
  const Layer layer = ragged();
  const Divided made = divided(layer.config, OPENMSA_NCCL_KEYS, comm_);
  const openmsa_workspace workspace = workspace_of(made, OPENMSA_OP_MERGE_PARTIALS, memory_);
  Buffer o(OPENMSA_FLOAT32, {77, 24, 16});
  const auto merge = [&](const Buffer& partial_o, const Buffer& partial_lse) {
    Tensors call = batch_of(layer);
    call.partial_o = partial_o.view();
    call.partial_lse = partial_lse.view();
    call.o = o.view();
    return openmsa_nccl_merge_partials(made.get(), &call, workspace);
  };
  const Buffer lse = heads_outermost(Buffer(OPENMSA_FLOAT32, {77, 24}));
  expect_error(merge(Buffer(OPENMSA_FLOAT32, {1, 77, 24, 16}), lse),
               "partial_o: expected [1, total_q, num_heads_q, head_dim], heads");
  expect_error(merge(heads_outermost(o), Buffer(OPENMSA_FLOAT32, {1, 77, 24})),
               "partial_lse: expected [1, total_q, num_heads_q], heads");
  expect_error(merge(heads_outermost(Buffer(OPENMSA_FLOAT16, {77, 24, 16})), lse),
               "partial_o: expected the plan's dtype or fp32");
  expect_error(merge(heads_outermost(o), heads_outermost(Buffer(OPENMSA_BFLOAT16, {77, 24}))),
               "partial_lse: expected fp32");
}

TEST_F(NcclCalls, FunctionsOfOtherDivisions) {
  const Config config = ragged().config;
  const Divided heads = divided(config, OPENMSA_NCCL_HEADS, comm_),
                queries = divided(config, OPENMSA_NCCL_QUERIES, comm_);
  std::size_t bytes = 0;
  const char* const message =
      "op: expected merge_candidates of a layer in HEADS or KEYS, or merge_partials of one in KEYS, ";
  expect_error(openmsa_nccl_workspace_bytes(heads.get(), OPENMSA_OP_MERGE_PARTIALS, &bytes),
               message + std::string("got merge_partials of division 1"));
  expect_error(openmsa_nccl_workspace_bytes(queries.get(), OPENMSA_OP_MERGE_CANDIDATES, &bytes), message);
  expect_error(openmsa_nccl_workspace_bytes(heads.get(), OPENMSA_OP_TOPK, &bytes), message);
  const Tensors none = tensors();
  expect_error(openmsa_nccl_merge_partials(heads.get(), &none, {}), message);
  expect_error(openmsa_nccl_gather_keys(heads.get(), &none, nullptr), "division: expected QUERIES, got 1");
  openmsa_nccl_prompt prompt;
  expect_error(openmsa_nccl_prompt_pieces(heads.get(), 100, &prompt), "division: expected QUERIES, got 1");
  expect_error(openmsa_nccl_prompt_pieces(queries.get(), 0, &prompt),
               "seqlen: expected 1 to max_seqlen_k = 700, got 0");
  expect_error(openmsa_nccl_prompt_pages(queries.get(), 701, nullptr), "pages: expected a place for them, got NULL");
}

TEST_F(NcclCalls, KeysOfOtherShapes) {
  const Divided made = divided(ragged().config, OPENMSA_NCCL_QUERIES, comm_);
  const auto gather = [&](const TensorMap& given) {
    Tensors call = tensors();
    for (const auto& [name, buffer] : given) at(call, name.c_str()) = buffer.view();
    return openmsa_nccl_gather_keys(made.get(), &call, nullptr);
  };
  const Buffer index_k(OPENMSA_FLOAT32, {64, 16}), index_k_cache(OPENMSA_FLOAT32, {4, 16, 16});
  EXPECT_EQ(gather({{"index_k", index_k}, {"index_k_cache", index_k_cache}}), OPENMSA_SUCCESS);
  expect_error(gather({}), "expected k and v, index_k, or both with their caches, got none");
  expect_error(gather({{"k", Buffer(OPENMSA_FLOAT32, {64, 12, 16})}}), "got k without v");
  expect_error(gather({{"index_k", index_k}}),
               "index_k_cache: expected [4, 16, 16] of dtype 1, contiguous, got [] of dtype 0");
  expect_error(gather({{"index_k", Buffer(OPENMSA_FLOAT32, {32, 16})}, {"index_k_cache", index_k_cache}}),
               "index_k: expected two pieces of whole kv_blocks, 64 tokens or a multiple, got 32");
  expect_error(gather({{"index_k", Buffer(OPENMSA_BFLOAT16, {64, 16})}, {"index_k_cache", index_k_cache}}),
               "index_k: expected [64, 16] of dtype 1, contiguous, got [64, 16] of dtype 2");
  expect_error(gather({{"index_k", restrided(index_k, {1, 64})}, {"index_k_cache", index_k_cache}}),
               ", not contiguous");
}

}  // namespace
}  // namespace openmsa::test
