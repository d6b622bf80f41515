#include "lm/training/training_memory.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "io/error.h"
#include "lm/support.h"
#include "lm/training/trainer.h"

namespace openmsa::test {
namespace {

lm::ModelConfig byte_config() {
  lm::ModelConfig config = tiny_config();
  config.vocab_size = 256;
  config.hidden_size = 128;
  config.dense_intermediate_size = 512;
  return config;
}

double allocated_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<double>(info.uordblks) + static_cast<double>(info.hblkhd);
}

TEST(TrainingMemory, IsWhatATrainerHoldsAfterAStep) {
  if (allocated_bytes() == 0) GTEST_SKIP() << "another allocator";
  lm::TrainingOptions options;
  options.seqlen = 1024;
  options.warmup_steps = 0;
  const std::string text(20000, 'a');
  const double before = allocated_bytes();
  lm::Trainer trainer(lm::fresh_state(byte_config(), options), text, 1);
  trainer.step(false);
  EXPECT_NEAR((allocated_bytes() - before) / static_cast<double>(lm::training_bytes(byte_config(), options)), 1, 0.2);
}

TEST(TrainingMemory, WhatNoMachineHasIsRefused) {
  lm::ModelConfig config = byte_config();
  config.hidden_size = 1 << 16;
  config.layers.resize(1000);
  lm::TrainingOptions options;
  EXPECT_THROW(lm::fresh_state(config, options), io::InputError);
  options.seqlen = options.batch = 1 << 20;
  EXPECT_THROW(lm::require_training_memory(config, options), io::InputError);
}

}  // namespace
}  // namespace openmsa::test
