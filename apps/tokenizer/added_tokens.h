// Tokens that are recognised in a text as they are, before anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace openmsa::tokenizer {

/// An Aho-Corasick automaton of the reversed tokens: it reads a text from its end, and knows at each place the longest
/// token that begins there. Time is linear in the text, whatever the tokens are.
class AddedTokens {
 public:
  AddedTokens() = default;
  /// Contents, none of them empty, and their numbers. InputError when they have more than 8 MiB together.
  explicit AddedTokens(const std::map<std::string, std::int32_t>& numbers);

  /// Walks through the text: `between` for what holds no added token, `token` for each one found, leftmost first and
  /// the longest of those that begin at one place.
  void split(std::string_view text, const std::function<void(std::string_view)>& between,
             const std::function<void(std::int32_t)>& token) const;

 private:
  struct Token {
    std::string reversed;
    std::int32_t number;
  };

  /// A string with which reversed tokens begin. Nodes are ordered by its length, so that children lie side by side;
  /// those of one node are ordered by their last byte.
  struct Node {
    std::uint32_t first_child;
    std::uint32_t failure;  // its longest proper suffix that is a node
    std::int32_t token;     // its longest suffix that is a token, in tokens_; -1: none
    std::uint16_t num_children;
    unsigned char byte;
  };

  /// Tokens [begin, end), which begin with the string of `node`.
  struct Subtree {
    std::uint32_t node, begin, end;
  };

  void add_nodes();
  void add_children(const Subtree& tree, std::size_t depth, std::vector<Subtree>& children);
  void add_failures();
  std::uint32_t child_of(std::uint32_t node, unsigned char byte) const;
  std::uint32_t next(std::uint32_t node, unsigned char byte) const;

  std::vector<Token> tokens_;  // by their reversed contents
  std::vector<Node> nodes_;    // the first is the root
};

}  // namespace openmsa::tokenizer
