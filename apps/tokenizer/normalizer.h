// The Unicode normal forms that a tokenizer.json may ask for.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace openmsa::tokenizer {

class Normalizer {
 public:
  /// "normalizer" of tokenizer.json: null, NFC, NFD, NFKC, NFKD or a Sequence of them. InputError names any other.
  explicit Normalizer(const nlohmann::json& description);

  /// Time in O(n log n). Bytes that are no UTF-8 stay as they are, between stretches that are normalised.
  std::string apply(std::string_view text) const;

 private:
  std::vector<int> forms_;  // options of utf8proc, one set per form
};

}  // namespace openmsa::tokenizer
