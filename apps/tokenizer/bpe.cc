#include "tokenizer/bpe.h"

#include <queue>
#include <tuple>

namespace openmsa::tokenizer {
namespace {

constexpr std::int64_t kNone = -1;

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

/// A token of the word so far, in a list that merging shortens; `token` is kNone once it is merged away.
struct Symbol {
  std::int64_t token;
  std::int64_t previous;
  std::int64_t next;
};

/// A pair that could merge when it was found. It is stale once either symbol has changed.
struct Candidate {
  std::uint32_t rank;
  std::int64_t position;  // of the left symbol: of equal ranks the leftmost merges first
  std::int64_t left;
  std::int64_t right;
  std::int32_t result;

  bool operator<(const Candidate& other) const {  // std::priority_queue hands out the largest
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

}  // namespace

void Bpe::add_merge(std::int32_t left, std::int32_t right, std::uint32_t rank, std::int32_t result) {
  merges_[key_of(left, right)] = {rank, result};
}

const Bpe::Merge* Bpe::find(std::int32_t left, std::int32_t right) const {
  const auto found = merges_.find(key_of(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& tokens) const {
  const auto size = static_cast<std::int64_t>(word.size());
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (std::int64_t i = 0; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
    symbols.push_back({byte_tokens_[byte], i - 1, i + 1 < size ? i + 1 : kNone});
  }
  const auto symbol = [&](std::int64_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };

  std::priority_queue<Candidate> candidates;
  const auto consider = [&](std::int64_t left) {
    if (left == kNone || symbol(left).next == kNone) return;
    const std::int64_t a = symbol(left).token, b = symbol(symbol(left).next).token;
    const Merge* merge = find(static_cast<std::int32_t>(a), static_cast<std::int32_t>(b));
    if (merge) candidates.push({merge->rank, left, a, b, merge->result});
  };
  for (std::int64_t i = 0; i + 1 < size; ++i) consider(i);

  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = symbol(best.position);
    if (left.token != best.left || left.next == kNone || symbol(left.next).token != best.right) continue;
    Symbol& right = symbol(left.next);
    right.token = kNone;
    left.token = best.result;
    left.next = right.next;
    if (left.next != kNone) symbol(left.next).previous = best.position;
    consider(left.previous);
    consider(best.position);
  }
  for (std::int64_t i = word.empty() ? kNone : 0; i != kNone; i = symbol(i).next) {
    tokens.push_back(static_cast<std::int32_t>(symbol(i).token));
  }
}

}  // namespace openmsa::tokenizer
