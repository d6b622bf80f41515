#include "msa/verify/report.h"

#include <cmath>
#include <cstdio>

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;

}  // namespace

void VerifyReport::add(const Format& format, openmsa_op op, const VerifyShape& shape,
                       const std::vector<Finding>& findings) {
  for (const Finding& finding : findings) {
    ++num_comparisons_;
    num_wrong_ += !is_right(finding);
    const auto [entry, is_new] = rows_[{op, finding.result}].try_emplace(format.name, Worst{finding, shape, 0});
    Worst& worst = entry->second;
    ++worst.cases;
    if (!is_new && finding.share() > worst.finding.share()) {
      worst.finding = finding;
      worst.shape = shape;
    }
  }
}

void VerifyReport::print_cell(const Row& row, const Format& format) const {
  const auto worst = row.find(format.name);
  if (worst == row.end()) {
    std::printf("%10s", "-");
  } else if (!is_right(worst->second.finding)) {
    std::printf("%10s", "WRONG");
  } else if (worst->second.finding.allowed == 0) {
    std::printf("%10s", "equal");
  } else {
    std::printf("%10.3f", worst->second.finding.share());
  }
}

void VerifyReport::print_wrong() const {
  for (const auto& [key, row] : rows_) {
    for (const auto& [format, worst] : row) {
      if (is_right(worst.finding)) continue;
      std::printf("  WRONG: %s of %s in %s: error %.3g, allowed %.3g; %s\n", key.second.c_str(), name_of(key.first),
                  format.c_str(), worst.finding.error, worst.finding.allowed * tolerance_,
                  describe(worst.shape).c_str());
    }
  }
}

void VerifyReport::print() const {
  std::printf("\n%-41s", backend_.c_str());
  for (const Format& format : kFormats) std::printf("%10s", format.name);
  std::printf("\n");
  for (const auto& [key, row] : rows_) {
    std::printf("  %-26s%-13s", name_of(key.first), key.second.c_str());
    for (const Format& format : kFormats) print_cell(row, format);
    std::printf("\n");
  }
  print_wrong();
}

ordered_json VerifyReport::json() const {
  ordered_json results = ordered_json::array();
  for (const auto& [key, row] : rows_) {
    for (const auto& [format, worst] : row) {
      const double error = worst.finding.error;
      results.push_back({{"operation", name_of(key.first)},
                         {"result", key.second},
                         {"dtype", format},
                         {"cases", worst.cases},
                         {"error", std::isfinite(error) ? ordered_json(error) : ordered_json("not finite")},
                         {"allowed", worst.finding.allowed * tolerance_},
                         {"is_right", is_right(worst.finding)},
                         {"worst_case", describe(worst.shape)}});
    }
  }
  return {{"backend", backend_}, {"comparisons", num_comparisons_}, {"wrong", num_wrong_}, {"results", results}};
}

}  // namespace openmsa::cli
