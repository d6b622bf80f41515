// What msa verify found, as a table and as JSON.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "msa/verify/findings.h"
#include "msa/verify/shape.h"

namespace openmsa::cli {

/// How far off one backend was.
class VerifyReport {
 public:
  /// `tolerance` times what a dtype allows is right.
  VerifyReport(std::string backend, double tolerance) : backend_(std::move(backend)), tolerance_(tolerance) {}

  void add(const Format& format, openmsa_op op, const VerifyShape& shape, const std::vector<Finding>& findings);

  int num_comparisons() const { return num_comparisons_; }
  int num_wrong() const { return num_wrong_; }

  void print() const;
  nlohmann::ordered_json json() const;

 private:
  /// The worst case of a result in one format.
  struct Worst {
    Finding finding;
    VerifyShape shape;
    int cases;
  };
  using Row = std::map<std::string, Worst>;  // by format

  bool is_right(const Finding& finding) const { return finding.share() <= tolerance_; }
  void print_cell(const Row& row, const Format& format) const;
  void print_wrong() const;

  std::string backend_;
  double tolerance_;
  int num_comparisons_ = 0, num_wrong_ = 0;
  std::map<std::pair<openmsa_op, std::string>, Row> rows_;  // by operation and result
};

}  // namespace openmsa::cli
