#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <span>

#include "io/error.h"

namespace openmsa::tokenizer {
namespace {

constexpr std::uint32_t kRoot = 0;

}  // namespace

AddedTokens::AddedTokens(const std::map<std::string, std::int32_t>& numbers) {
  constexpr std::size_t kMostBytes = 8 << 20;  // a node, of 16 bytes, for each; some 400 000 tokens of 20 bytes
  std::size_t bytes = 0;
  for (const auto& [content, number] : numbers) {
    bytes += content.size();
    if (bytes > kMostBytes) throw io::InputError("added_tokens: more than 8 MiB");
    tokens_.push_back({{content.rbegin(), content.rend()}, number});
  }
  std::ranges::sort(tokens_, {}, &Token::reversed);
  if (tokens_.empty()) return;
  nodes_.reserve(bytes + 1);
  add_nodes();
  add_failures();
}

void AddedTokens::add_nodes() {
  nodes_.push_back({0, kRoot, -1, 0, 0});
  std::vector<Subtree> level = {{kRoot, 0, static_cast<std::uint32_t>(tokens_.size())}};
  for (std::size_t depth = 0; !level.empty(); ++depth) {
    std::vector<Subtree> children;
    for (const Subtree& tree : level) add_children(tree, depth, children);
    level.swap(children);
  }
}

void AddedTokens::add_children(const Subtree& tree, std::size_t depth, std::vector<Subtree>& children) {
  std::uint32_t i = tree.begin;
  if (tokens_[i].reversed.size() == depth) nodes_[tree.node].token = static_cast<std::int32_t>(i++);
  nodes_[tree.node].first_child = static_cast<std::uint32_t>(nodes_.size());
  while (i < tree.end) {
    const char byte = tokens_[i].reversed[depth];
    const std::uint32_t begin = i;
    while (i < tree.end && tokens_[i].reversed[depth] == byte) ++i;
    children.push_back({static_cast<std::uint32_t>(nodes_.size()), begin, i});
    nodes_.push_back({0, kRoot, -1, 0, static_cast<unsigned char>(byte)});
    ++nodes_[tree.node].num_children;
  }
}

/// From the shortest strings on: a failure is shorter than its node.
void AddedTokens::add_failures() {
  for (std::uint32_t node = kRoot; node < nodes_.size(); ++node) {
    for (std::uint32_t i = 0; i < nodes_[node].num_children; ++i) {
      Node& child = nodes_[nodes_[node].first_child + i];
      if (node != kRoot) child.failure = next(nodes_[node].failure, child.byte);
      if (child.token < 0) child.token = nodes_[child.failure].token;
    }
  }
}

/// kRoot: none.
std::uint32_t AddedTokens::child_of(std::uint32_t node, unsigned char byte) const {
  const std::span children = std::span(nodes_).subspan(nodes_[node].first_child, nodes_[node].num_children);
  const auto found = std::ranges::lower_bound(children, byte, {}, &Node::byte);
  if (found == children.end() || found->byte != byte) return kRoot;
  return static_cast<std::uint32_t>(&*found - nodes_.data());
}

/// The longest suffix of the node's string and `byte` that is a node.
std::uint32_t AddedTokens::next(std::uint32_t node, unsigned char byte) const {
  while (true) {
    const std::uint32_t found = child_of(node, byte);
    if (found != kRoot || node == kRoot) return found;
    node = nodes_[node].failure;
  }
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& between,
                        const std::function<void(std::int32_t)>& token) const {
  struct Match {
    std::size_t begin;
    const Token* token;
  };
  std::vector<Match> matches;  // from the last on
  std::uint32_t node = kRoot;
  for (std::size_t i = tokens_.empty() ? 0 : text.size(); i-- > 0;) {
    node = next(node, static_cast<unsigned char>(text[i]));
    if (nodes_[node].token >= 0) matches.push_back({i, &tokens_[static_cast<std::size_t>(nodes_[node].token)]});
  }
  std::size_t done = 0;
  for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
    if (match->begin < done) continue;  // inside of the token before
    if (match->begin > done) between(text.substr(done, match->begin - done));
    token(match->token->number);
    done = match->begin + match->token->reversed.size();
  }
  if (done < text.size()) between(text.substr(done));
}

}  // namespace openmsa::tokenizer
