// Layers: their plans, and that all ranks have been given the same.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "layer.h"
#include "memory.h"

namespace openmsa::nccl {
namespace {

thread_local std::string last_error;

/// A struct of the caller's, whose header may have had fewer members; those are zero.
template <class Struct>
Struct grown(const char* name, const Struct* given) {
  if (given == nullptr) fail(OPENMSA_INVALID_ARGUMENT, name, ": expected one, got NULL");
  if (given->struct_size < sizeof given->struct_size || given->struct_size > sizeof(Struct)) {
    fail(OPENMSA_INVALID_ARGUMENT, name, ".struct_size: expected at most ", sizeof(Struct), ", got ",
         given->struct_size);
  }
  Struct result{};
  std::memcpy(&result, given, given->struct_size);
  result.struct_size = sizeof result;
  return result;
}

/// What ranks have to agree on, by name. All numbers of a configuration are exact in a double.
struct Fact {
  template <class Number>
  Fact(const char* name, Number value) : name(name), value(static_cast<double>(value)) {}

  const char* name;
  double value;
};

std::vector<Fact> facts_of(const openmsa_config& config, openmsa_nccl_division division) {
  return {{"division", division},
          {"backend", config.backend},
          {"dtype", config.dtype},
          {"num_heads_q", config.num_heads_q},
          {"num_heads_kv", config.num_heads_kv},
          {"head_dim", config.head_dim},
          {"index_dim", config.index_dim},
          {"block_size", config.block_size},
          {"topk", config.topk},
          {"num_init_blocks", config.num_init_blocks},
          {"num_local_blocks", config.num_local_blocks},
          {"softmax_scale", config.softmax_scale},
          {"page_size", config.page_size},
          {"max_batch", config.max_batch},
          {"max_total_q", config.max_total_q},
          {"max_seqlen_k", config.max_seqlen_k},
          {"kv_dtype", config.kv_dtype},
          {"index_dtype", config.index_dtype},
          {"index_q_rounding", config.index_q_rounding},
          {"index_scale_per_block", config.index_scale_per_block},
          {"shard_count", config.shard_count}};
}

/// What a rank sends of itself. It has one size in all versions, so that those that differ can say so.
struct Card {
  char version[32];
  std::int32_t is_refused;  // its own arguments contradict each other; the facts mean nothing
  double facts[56];
};
static_assert(sizeof(Card) == 488);

Card card_of(const std::vector<Fact>& facts, bool is_refused) {
  Card card{};
  std::strncpy(card.version, openmsa_version(), sizeof card.version - 1);
  card.is_refused = is_refused ? 1 : 0;
  for (std::size_t i = 0; i < facts.size(); ++i) card.facts[i] = facts[i].value;
  return card;
}

template <class Value>
void check_same(const char* name, const Value& first, const Value& other, std::size_t rank) {
  if (first == other) return;
  fail(OPENMSA_INVALID_ARGUMENT, name, ": expected the same on all ranks, got ", first, " on rank 0 and ", other,
       " on rank ", rank);
}

void check_agreement(const std::vector<Card>& cards, const std::vector<Fact>& facts) {
  for (std::size_t rank = 1; rank < cards.size(); ++rank) {
    check_same("version of openmsa", std::string(cards[0].version), std::string(cards[rank].version), rank);
  }
  for (std::size_t rank = 0; rank < cards.size(); ++rank) {
    if (cards[rank].is_refused != 0) {
      fail(OPENMSA_INVALID_ARGUMENT, "config: expected one that all ranks can use, got one that rank ", rank,
           " was refused, whose own error says why");
    }
  }
  for (std::size_t rank = 1; rank < cards.size(); ++rank) {
    for (std::size_t i = 0; i < facts.size(); ++i) {
      check_same(facts[i].name, cards[0].facts[i], cards[rank].facts[i], rank);
    }
  }
}

/// The cards of all ranks.
std::vector<Card> exchanged(const Card& mine, const openmsa_nccl_layer& layer, openmsa_workspace workspace) {
  const std::size_t bytes = openmsa_nccl_create_bytes(layer.count);
  if (workspace.data == nullptr || workspace.bytes < bytes) {
    fail(OPENMSA_INVALID_ARGUMENT, "workspace: expected at least ", bytes, " bytes, got ",
         workspace.data == nullptr ? 0 : workspace.bytes);
  }
  std::vector<Card> cards(static_cast<std::size_t>(layer.count));
  auto* const received = static_cast<Card*>(workspace.data);
  Card* const sent = received + layer.count;
  copy_from_host(sent, &mine, sizeof mine, workspace.stream);
  check(ncclAllGather(sent, received, sizeof mine, ncclUint8, layer.comm, static_cast<cudaStream_t>(workspace.stream)),
        "ncclAllGather");
  copy_to_host(cards.data(), received, cards.size() * sizeof(Card), workspace.stream);
  return cards;
}

/// The caller's configuration in the shard of this rank.
openmsa_config config_of(const openmsa_config* given, const openmsa_nccl_layer& layer) {
  openmsa_config config = grown("config", given);
  if (config.shard_count != 0 && config.shard_count != layer.count) {
    fail(OPENMSA_INVALID_ARGUMENT, "shard_count: expected 0 or the ", layer.count, " ranks of the communicator, got ",
         config.shard_count);
  }
  if (config.shard_count != 0 && config.shard_rank != layer.rank) {
    fail(OPENMSA_INVALID_ARGUMENT, "shard_rank: expected ", layer.rank, " as of the communicator, got ",
         config.shard_rank);
  }
  config.shard_count = layer.count;
  config.shard_rank = layer.rank;
  return config;
}

void check_multiple(const char* name, std::int32_t heads, std::int32_t count) {
  if (heads % count != 0) {
    fail(OPENMSA_INVALID_ARGUMENT, name, ": expected a multiple of the ", count, " ranks, got ", heads);
  }
}

Plan plan_of(const openmsa_config& config) {
  openmsa_plan* plan = nullptr;
  check(openmsa_plan_create(&config, &plan));
  return Plan(plan);
}

/// Throws UNSUPPORTED for what the backend has no kernels for.
void check_served(const Plan& plan, openmsa_op op) {
  std::size_t bytes = 0;
  check(openmsa_plan_workspace_bytes(plan.get(), op, &bytes));
}

/// Of what the division merges.
void make_plans(openmsa_nccl_layer& layer) {
  const openmsa_config& config = layer.config;
  switch (layer.division) {
    case OPENMSA_NCCL_HEADS:
      check_multiple("num_heads_q", config.num_heads_q, layer.count);
      check_multiple("num_heads_kv", config.num_heads_kv, layer.count);
      break;
    case OPENMSA_NCCL_KEYS:
      check_multiple("num_heads_q", config.num_heads_q, layer.count);
      break;
    case OPENMSA_NCCL_QUERIES: {
      openmsa_config whole = config;  // gathered keys are no shard
      whole.shard_count = whole.shard_rank = 0;
      plan_of(whole);
      return;
    }
    default:
      fail(OPENMSA_UNSUPPORTED, "division: expected HEADS (1), KEYS (2) or QUERIES (3), got ",
           static_cast<int>(layer.division));
  }
  plan_of(config);
  openmsa_config merge = config;
  merge.num_heads_q = config.num_heads_q / config.num_heads_kv * layer.selected_heads();
  merge.num_heads_kv = layer.selected_heads();
  layer.candidates = plan_of(merge);
  check_served(layer.candidates, OPENMSA_OP_MERGE_CANDIDATES);
  if (layer.division == OPENMSA_NCCL_KEYS) {
    merge.num_heads_q = merge.num_heads_kv = config.num_heads_q / layer.count;
    layer.partials = plan_of(merge);
    check_served(layer.partials, OPENMSA_OP_MERGE_PARTIALS);
  }
}

std::unique_ptr<openmsa_nccl_layer> new_layer(const openmsa_config* config, openmsa_nccl_division division,
                                              ncclComm_t comm, openmsa_workspace workspace) {
  if (comm == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "comm: expected a communicator, got NULL");
  auto layer = std::make_unique<openmsa_nccl_layer>();
  layer->comm = comm;
  layer->division = division;
  check(ncclCommCount(comm, &layer->count), "ncclCommCount");
  check(ncclCommUserRank(comm, &layer->rank), "ncclCommUserRank");
  const openmsa_status status = guarded([&] {
    layer->config = config_of(config, *layer);
    check_backend(layer->config.backend);
    make_plans(*layer);
  });
  const std::vector<Fact> facts = facts_of(layer->config, division);
  const std::vector<Card> cards = exchanged(card_of(facts, status != OPENMSA_SUCCESS), *layer, workspace);
  if (status != OPENMSA_SUCCESS) fail(status, last_error);
  check_agreement(cards, facts);
  return layer;
}

}  // namespace

openmsa_tensors tensors_of(const openmsa_tensors* given) { return grown("tensors", given); }

std::size_t bytes_of(const openmsa_tensor& tensor) {
  std::size_t bytes = openmsa_dtype_bytes(tensor.dtype);
  for (std::int32_t i = 0; i < tensor.rank; ++i) bytes *= static_cast<std::size_t>(tensor.shape[i]);
  return bytes;
}

openmsa_status failed(openmsa_status status, std::string message) noexcept {
  last_error = std::move(message);
  return status;
}

}  // namespace openmsa::nccl

size_t openmsa_nccl_create_bytes(int32_t count) {
  return (static_cast<std::size_t>(std::max(count, 0)) + 1) * sizeof(openmsa::nccl::Card);
}

openmsa_status openmsa_nccl_create(const openmsa_config* config, openmsa_nccl_division division, struct ncclComm* comm,
                                   openmsa_workspace workspace, openmsa_nccl_layer** layer) {
  using namespace openmsa::nccl;
  return guarded([&] {
    if (layer == nullptr) fail(OPENMSA_INVALID_ARGUMENT, "layer: expected a place for it, got NULL");
    *layer = nullptr;
    *layer = new_layer(config, division, comm, workspace).release();
  });
}

void openmsa_nccl_destroy(openmsa_nccl_layer* layer) { delete layer; }

const char* openmsa_nccl_last_error() { return openmsa::nccl::last_error.c_str(); }
