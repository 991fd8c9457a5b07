#include "program.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "../data/file.h"
#include "../tensor/runtime.h"
#include "bench.h"
#include "convert.h"
#include "diff.h"
#include "distill.h"
#include "eval.h"
#include "explain.h"
#include "export.h"
#include "features.h"
#include "identify.h"
#include "info.h"
#include "init.h"
#include "inspect.h"
#include "models.h"
#include "predict.h"
#include "report.h"
#include "reproduce.h"
#include "tokenize.h"
#include "train.h"
#include "transmiter.h"
#include "verify.h"

namespace pupil {
namespace {

// One message is one line, whatever it was put together from.
int say(const std::string& message, int code) {
  std::string line = "pupil: ";
  bool gap = false;
  for (char c : message)
    if (c == '\n')
      gap = true;
    else {
      if (gap && line.back() != ' ') line += ' ';
      gap = false;
      line += c;
    }
  std::cout.flush();
  std::cerr << line << std::endl;
  return code;
}

// Every command is a file tools/NAME.{h,cc} that adds itself here.
void add_commands(CLI::App& app) {
  add_init_command(app);
  add_train_command(app);
  add_distill_command(app);
  add_eval_command(app);
  add_predict_command(app);
  add_inspect_command(app);
  add_convert_command(app);
  add_export_command(app);
  add_models_command(app);
  add_tokenize_command(app);
  add_verify_command(app);
  add_identify_command(app);
  add_diff_command(app);
  add_explain_command(app);
  add_reproduce_command(app);
  add_bench_command(app);
  add_features_command(app);
  add_transmiter_command(app);
  add_report_command(app);
  add_info_command(app);
}

// The words that `app` or its chosen command did not know.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  std::string message = error.what(), command;
  for (const CLI::App* chosen : app.get_subcommands()) {
    command = concat(" ", chosen->get_name());
    std::vector<std::string> names;
    for (const CLI::Option* option : chosen->get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& given : chosen->remaining())
      if (given.starts_with("--")) {
        message = concat("unknown option ", given, did_you_mean(given, names));
        break;
      }
  }
  if (command.empty() && !app.remaining().empty()) {
    std::vector<std::string> names;
    for (const CLI::App* known : app.get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(known->get_name());
    std::string given = app.remaining()[0];
    message = concat("unknown command \"", given, "\"", did_you_mean(given, names));
  }
  return concat(message, " (see pupil", command, " --help)");
}

}  // namespace

const char* version() { return PUPIL_VERSION; }

void add_threads_option(CLI::App& command, int& threads) {
  const char* text =
      threads < 0 ? "CPU threads (0: all; default: all, or as resumed)" : "CPU threads (0: all)";
  command.add_option("--threads", threads, text)->check(CLI::Range(0, 1024));
  command.add_flag_callback(
      "--exact", [] { set_exact_mode(true); },
      "the same bits for any number of threads (slower: libraries work on one)");
}

void use_threads(int threads) { set_cpu_threads(threads); }

int program(int argc, char** argv) {
  CLI::App app{"Trains small networks with the knowledge of large ones.", "pupil"};
  app.footer("Example:\n  pupil init > kd.toml && pupil train kd.toml");
  app.set_version_flag("--version", std::string("pupil ") + version());
  app.require_subcommand(1);
  data::explain_lost_files();
  try {
    add_commands(app);
    app.parse(argc, argv);  // runs the command's callback
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return say(usage_error(app, error), 2);
  } catch (const Interrupted& error) {
    return say(error.what(), 130);
  } catch (const InputError& error) {
    return say(error.what(), 2);
  } catch (const std::exception& error) {
    return say(error.what(), 1);
  }
  std::cout.flush();
  if (!std::cout) return say("could not write to standard output", 1);
  return 0;
}

}  // namespace pupil
