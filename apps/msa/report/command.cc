// msa report: one self-contained page, and a short table, from the files of a demo run.
#include "msa/command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "io/atomic_file.h"
#include "io/error.h"
#include "msa/outputs.h"
#include "msa/report/run_data.h"

namespace openmsa::cli {

/// Files of msa/report and Chart.js, compiled in.
namespace text {
extern const std::string_view page_html;
extern const std::string_view page_css;
extern const std::string_view page_js;
extern const std::string_view chart_js;
}  // namespace text

namespace {

struct ReportOptions {
  std::string run;
  std::string output;
  bool summary = false;
};

/// JSON inside a script element: no "<" may stand there, since "</script>" would end the element.
std::string embeddable(const nlohmann::ordered_json& value) {
  std::string escaped;
  for (char c : value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::ordered_json::error_handler_t::replace)) {
    if (c == '<') {
      escaped += "\\u003c";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

/// The page with every {{name}} filled in.
std::string render(const nlohmann::ordered_json& run) {
  const std::string data = embeddable(run);
  const std::pair<std::string_view, std::string_view> values[] = {
      {"style", text::page_css}, {"data", data}, {"chart", text::chart_js}, {"script", text::page_js}};
  std::string page;
  std::string_view rest = text::page_html;
  for (const auto& [name, value] : values) {  // in the order of the page
    const std::string placeholder = "{{" + std::string(name) + "}}";
    const std::size_t at = rest.find(placeholder);
    page.append(rest.substr(0, at)).append(value);
    rest.remove_prefix(at + placeholder.size());
  }
  return page.append(rest);
}

void run_report(const ReportOptions& options) {
  if (options.output.empty() && !options.summary) throw io::InputError("expected --output, --summary or both");
  check_outputs({{"--output", options.output}});
  const nlohmann::ordered_json run = read_run(options.run);
  if (!options.output.empty()) {
    io::AtomicFile file(options.output);
    file.write(render(run));
    file.commit();
  }
  if (options.summary) std::fputs(summary(run).c_str(), stdout);
}

}  // namespace

void add_report(CLI::App& app) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "Make one self-contained page of a demo run");
  command->footer("Example:\n  msa report --run demo-out --output report.html --summary");
  command->add_option("--run", options->run, "Directory of the run, as scripts/demo.sh leaves it")
      ->required()
      ->type_name("DIR");
  command->add_option("--output", options->output, "The page")->type_name("FILE");
  command->add_flag("--summary", options->summary, "Print the main figures as a table");
  command->callback([options] { run_report(*options); });
}

}  // namespace openmsa::cli
