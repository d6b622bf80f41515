#include "support/serving_trace.h"

#include <algorithm>

namespace openmsa::test {
namespace {

// One request in so many ...
constexpr std::int64_t kLeaves = 100;  // leaves before a step
constexpr std::int64_t kPauses = 20;   // computes nothing in a step
constexpr std::int64_t kJoins = 8;     // free slots: is taken before a step
constexpr std::int64_t kShares = 2;    // begins with the pages of another one, where there are any
// One step in so many has a chunk of a prompt.
constexpr std::int64_t kChunks = 3;

}  // namespace

ServingTrace::ServingTrace(const ServingLimits& limits, std::uint64_t seed)
    : limits_(limits),
      random_(seed),
      requests_(static_cast<std::size_t>(limits.slots)),
      holders_(static_cast<std::size_t>(limits.num_pages), 0) {
  for (std::int64_t page = 1; page < limits.num_pages; ++page) free_pages_.push_back(page);
}

ServingStep ServingTrace::next() {
  ServingStep step;
  for (Request& request : requests_) {
    if (request.tokens > 0 && below(kLeaves) == 0) leave(request, step);
  }
  for (Request& request : requests_) {
    if (request.tokens == 0 && below(kJoins) == 0) join(request, step);
  }
  const bool has_chunk = limits_.max_chunk > 0 && below(kChunks) == 0;
  const Request* const chunk = has_chunk ? &requests_[static_cast<std::size_t>(below(limits_.slots))] : nullptr;
  for (Request& request : requests_) {
    std::int64_t queries = below(2);  // of a free slot
    if (request.tokens > 0) {
      queries = below(kPauses) == 0 ? 0 : 1 + below(&request == chunk ? limits_.max_chunk : limits_.max_new);
      if (!grow(request, queries)) queries = 0;
      if (queries > limits_.max_new) ++chunks_;
    }
    step.seqlens_q.push_back(queries);
    step.seqlens_k.push_back(request.tokens);
    step.block_table.insert(step.block_table.end(), request.pages.begin(), request.pages.end());
    step.block_table.resize(step.seqlens_k.size() * static_cast<std::size_t>(limits_.max_pages), -1);
  }
  return step;
}

std::int64_t ServingTrace::take_page() {
  const auto i = static_cast<std::size_t>(below(static_cast<std::int64_t>(free_pages_.size())));
  std::swap(free_pages_[i], free_pages_.back());
  const std::int64_t page = free_pages_.back();
  free_pages_.pop_back();
  holders_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void ServingTrace::leave(Request& request, ServingStep& step) {
  for (const std::int64_t page : request.pages) {
    if (--holders_[static_cast<std::size_t>(page)] > 0) continue;
    step.returned.push_back(page);
    free_pages_.push_back(page);
  }
  request = {};
}

void ServingTrace::join(Request& request, ServingStep& step) {
  const Request& other = requests_[static_cast<std::size_t>(below(limits_.slots))];
  const std::int64_t full_pages = other.tokens / limits_.page_size;
  const std::int64_t shared = full_pages > 0 && below(kShares) == 0 ? 1 + below(full_pages) : 0;
  const std::int64_t room = (limits_.max_pages - shared) * limits_.page_size;
  const std::int64_t own = std::min(room, 1 + below(limits_.max_prompt));
  if ((own + limits_.page_size - 1) / limits_.page_size > static_cast<std::int64_t>(free_pages_.size())) return;
  for (std::int64_t p = 0; p < shared; ++p) {
    request.pages.push_back(other.pages[static_cast<std::size_t>(p)]);
    ++holders_[static_cast<std::size_t>(request.pages.back())];
  }
  for (std::int64_t left = own; left > 0; left -= limits_.page_size) {
    request.pages.push_back(take_page());
    step.filled.push_back({request.pages.back(), std::min(left, limits_.page_size)});
  }
  request.tokens = shared * limits_.page_size + own;
  ++joined_;
  if (shared > 0) ++joined_behind_a_prefix_;
}

bool ServingTrace::grow(Request& request, std::int64_t tokens) {
  const std::int64_t pages = (request.tokens + tokens + limits_.page_size - 1) / limits_.page_size;
  const std::int64_t more = pages - static_cast<std::int64_t>(request.pages.size());
  if (pages > limits_.max_pages) return false;
  if (more > static_cast<std::int64_t>(free_pages_.size())) {
    ++stalled_;
    return false;
  }
  for (std::int64_t i = 0; i < more; ++i) request.pages.push_back(take_page());
  request.tokens += tokens;
  return true;
}

}  // namespace openmsa::test
