// A random serving trace on a paged cache: requests join, some behind the prefix of another one, grow, and leave.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace openmsa::test {

struct ServingLimits {
  std::int64_t slots;  // requests of a batch
  std::int64_t num_pages;
  std::int64_t page_size;
  std::int64_t max_pages;      // of one request
  std::int64_t max_new;        // tokens of one request and step
  std::int64_t max_prompt;     // tokens of one request that stand in the cache when it joins, behind shared ones
  std::int64_t max_chunk = 0;  // new tokens of one request of a step, now and then: the next part of a prompt
};

/// What changes in memory before a step, in this order, and the batch that it then computes.
struct ServingStep {
  struct Fill {
    std::int64_t page;
    std::int64_t tokens;  // of a prompt, from the page's start
  };
  std::vector<std::int64_t> returned;  // pages that no request holds any more
  std::vector<Fill> filled;
  std::vector<std::int64_t> seqlens_q, seqlens_k;  // of every slot; free ones have no keys, some of them a query
  std::vector<std::int64_t> block_table;           // [slots, max_pages], -1 where a request has no page
};

/// Page 0 is nobody's. Deterministic for a seed.
class ServingTrace {
 public:
  ServingTrace(const ServingLimits& limits, std::uint64_t seed);

  ServingStep next();

  /// What has happened so far.
  std::int64_t joined() const { return joined_; }
  std::int64_t joined_behind_a_prefix() const { return joined_behind_a_prefix_; }
  std::int64_t stalled() const { return stalled_; }  // for want of a page
  std::int64_t chunks() const { return chunks_; }

 private:
  struct Request {
    std::int64_t tokens = 0;  // 0: the slot is free
    std::vector<std::int64_t> pages;
  };

  std::int64_t below(std::int64_t end) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(end));
  }
  std::int64_t take_page();
  void leave(Request& request, ServingStep& step);
  void join(Request& request, ServingStep& step);
  bool grow(Request& request, std::int64_t tokens);

  ServingLimits limits_;
  std::mt19937_64 random_;
  std::vector<Request> requests_;
  std::vector<std::int64_t> free_pages_;
  std::vector<std::int64_t> holders_;  // of each page
  std::int64_t joined_ = 0, joined_behind_a_prefix_ = 0, stalled_ = 0, chunks_ = 0;
};

}  // namespace openmsa::test
