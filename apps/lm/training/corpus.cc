#include "lm/training/corpus.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "io/error.h"
#include "lm/ops/random.h"

namespace openmsa::lm {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kHeldOutShare = 20;  // one file in twenty

struct Candidate {
  fs::path path;
  std::string name;
  std::uint64_t hash;
};

void add_candidate(const fs::path& path, const std::string& name, std::vector<Candidate>& candidates) {
  candidates.push_back({path, name, hash(0, name)});
}

std::vector<Candidate> list_folder(const fs::path& folder) {
  std::vector<Candidate> candidates;
  const auto options = fs::directory_options::skip_permission_denied;
  for (const auto& entry : fs::recursive_directory_iterator(folder, options)) {
    if (entry.is_symlink() || !entry.is_regular_file()) continue;
    add_candidate(entry.path(), entry.path().lexically_relative(folder).generic_string(), candidates);
  }
  std::ranges::sort(candidates, {}, &Candidate::name);  // folders are listed in no particular order
  return candidates;
}

std::vector<Candidate> list_files(const std::vector<fs::path>& paths) {
  std::vector<Candidate> candidates;
  for (const fs::path& path : paths) {
    if (fs::is_directory(path)) {
      std::ranges::move(list_folder(path), std::back_inserter(candidates));
    } else if (fs::exists(path)) {
      add_candidate(path, path.filename().string(), candidates);
    } else {
      throw io::InputError(path.string() + ": no such file or folder");
    }
  }
  return candidates;
}

/// The file's bytes, or nothing for a binary or unreadable one.
std::optional<std::string> read_text_file(const fs::path& path) {
  constexpr std::size_t kProbe = 8192;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return std::nullopt;
  std::string head(kProbe, '\0');
  stream.read(head.data(), kProbe);
  head.resize(static_cast<std::size_t>(stream.gcount()));
  if (head.find('\0') != std::string::npos) return std::nullopt;
  std::ostringstream rest;
  if (stream) rest << stream.rdbuf();
  return head + rest.str();
}

void append(const std::string& name, std::string_view bytes, Text& text) {
  if (bytes.empty()) return;
  const std::size_t begin = text.bytes.size();
  text.bytes += bytes;
  text.files.push_back({name, begin, text.bytes.size()});
  text.bytes += '\0';
}

/// A single file: its end is held out.
Text split_file(const Candidate& file, CorpusPart part) {
  Text text;
  const std::string bytes = read_text_file(file.path).value_or("");
  const std::size_t boundary = bytes.size() - bytes.size() / kHeldOutShare;
  const std::string_view view = bytes;
  append(file.name, part == CorpusPart::kTraining ? view.substr(0, boundary) : view.substr(boundary), text);
  return text;
}

Text split_by_file(const std::vector<Candidate>& files, CorpusPart part) {
  const auto chosen = [](const Candidate& file) { return file.hash % kHeldOutShare == 0; };
  const auto num_chosen = std::ranges::count_if(files, chosen);
  const bool both_parts = num_chosen > 0 && num_chosen < std::ssize(files);
  const Candidate* const lowest = &*std::ranges::min_element(files, {}, &Candidate::hash);
  Text text;
  for (const Candidate& file : files) {
    const bool held_out = both_parts ? chosen(file) : &file == lowest;
    if (held_out != (part == CorpusPart::kHeldOut)) continue;
    if (const auto bytes = read_text_file(file.path)) append(file.name, *bytes, text);
  }
  return text;
}

}  // namespace

Text load_text(const std::vector<fs::path>& paths, CorpusPart part) {
  const std::vector<Candidate> files = list_files(paths);
  Text text;
  if (files.size() == 1) text = split_file(files.front(), part);
  if (files.size() > 1) text = split_by_file(files, part);
  if (text.files.empty()) {
    throw io::InputError(std::string("no text for the ") + (part == CorpusPart::kTraining ? "training" : "held-out") +
                         " part under " + (paths.empty() ? "no path" : paths.front().string()));
  }
  return text;
}

std::vector<fs::path> default_text_paths() {
  std::vector<fs::path> paths;
  if (fs::is_directory("/usr/include")) paths.emplace_back("/usr/include");
  for (const char* root : {"/usr/lib", "/usr/local/lib"}) {
    if (!fs::is_directory(root)) continue;
    for (const auto& entry : fs::directory_iterator(root)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("python3") && entry.is_directory() && !entry.is_symlink()) paths.push_back(entry.path());
    }
  }
  std::ranges::sort(paths);
  if (paths.empty()) {
    throw io::InputError("no default text: neither /usr/include nor /usr/lib/python3* exists; give --text PATH");
  }
  return paths;
}

}  // namespace openmsa::lm
