#include "msa/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace openmsa::cli {
namespace {

constexpr std::chrono::seconds kQuietStart{2};
constexpr std::chrono::milliseconds kInterval{100};
constexpr int kBarWidth = 24;

/// Columns that a line on stderr may take without being wrapped: only a line that is not can be cleared.
std::size_t columns() {
  constexpr std::size_t kUsual = 80;
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return (known ? size.ws_col : kUsual) - 1;
}

}  // namespace

Progress::Progress(std::string label, std::int64_t total)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      enabled_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() { finish(); }

void Progress::update(std::int64_t done, const std::string& note) {
  const auto now = Clock::now();
  if (!enabled_ || now - start_ < kQuietStart || now - last_ < kInterval) return;
  last_ = now;
  shown_ = true;

  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, ' ');
  std::string eta;
  if (share > 0) {
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    const long rest = std::lround(elapsed * (1 - share) / share);
    char text[48];
    std::snprintf(text, sizeof text, "  eta %ld:%02ld", rest / 60, rest % 60);
    eta = text;
  }
  const std::string separator = note.empty() ? "" : "  ";
  char percent[16];
  std::snprintf(percent, sizeof percent, "%3d %%", static_cast<int>(share * 100));
  const std::string line = label_ + "  [" + bar + "] " + percent + separator + note + eta;
  std::fprintf(stderr, "\r\033[K%s", line.substr(0, columns()).c_str());
  std::fflush(stderr);
}

void Progress::finish() {
  if (shown_) std::fputs("\r\033[K", stderr);
  shown_ = false;
  enabled_ = false;
}

}  // namespace openmsa::cli
