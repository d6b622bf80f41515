// Runs the msa command and keeps what it said.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "io/safetensors.h"
#include "support/run.h"
#include "support/temporary_directory.h"

namespace openmsa::test {

struct MsaRun {
  int status;
  std::string out;
  std::string err;
};

class MsaTest : public testing::Test {
 protected:
  MsaRun msa(const std::vector<std::string>& arguments) const;

  /// Writes those of `names` that the layer has.
  void write(const Layer& layer, const std::vector<std::string>& names, const std::string& file = "in") const;

  /// msa attend of "in" to "out", which must succeed.
  io::SafetensorsFile attend(std::vector<std::string> options) const;

  TemporaryDirectory directory_;
};

/// Inputs of the whole layer with contiguous keys.
inline const std::vector<std::string> kContiguous = {"cu_seqlens_q", "cu_seqlens_k", "q", "k", "v",
                                                     "index_q",      "index_k"};
inline const std::vector<std::string> kPaged = {"cu_seqlens_q", "seqlens_k", "block_table", "q",
                                                "index_q",      "k_cache",   "v_cache",     "index_k_cache"};

/// Exit status 2, or 1 where said, and one line on stderr.
void expect_refusal(const MsaRun& run, const std::string& message, int status = 2);

/// The stored tensor has the type, the shape and every bit of `expected`.
void expect_same(const io::SafetensorsFile& file, const std::string& name, const Buffer& expected);

}  // namespace openmsa::test
