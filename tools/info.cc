#include "info.h"

#include <CLI/CLI.hpp>
#include <dnnl.hpp>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../tensor/memory.h"
#include "../tensor/runtime.h"
#include "machine.h"
#include "program.h"

namespace pupil {
namespace {

void info(bool as_json) {
  nlohmann::ordered_json j;
  j["version"] = version();
  j["cpu"] = cpu_name();
  j["cpu_features"] = cpu_features();
  j["threads"] = cpu_threads();
  const dnnl_version_t* v = dnnl_version();
  j["onednn"] = concat(v->major, ".", v->minor, ".", v->patch);
  j["plain_mode"] = plain_mode();
  for (auto [name, arena] : {std::pair{"step", &Arena::step({})}, {"model", &Arena::model({})}}) {
    MemoryStats s = arena->stats();
    j["arenas"][name] = {
        {"live_bytes", s.live}, {"peak_bytes", s.peak}, {"reserved_bytes", s.reserved}};
  }
  j["cuda"] = false;
  if (as_json) {
    std::cout << j.dump(2) << "\n";
    return;
  }
  std::cout << "pupil     " << version() << "\n"
            << "CPU       " << cpu_name() << " (" << cpu_features() << ")\n"
            << "threads   " << cpu_threads() << "\n"
            << "oneDNN    " << j["onednn"].get<std::string>() << "\n"
            << "plain     " << (plain_mode() ? "yes: reference loops (PUPIL_PLAIN)" : "no") << "\n"
            << "arenas    step " << j["arenas"]["step"]["reserved_bytes"] << " bytes, model "
            << j["arenas"]["model"]["reserved_bytes"] << " bytes reserved\n"
            << "CUDA      no (this is the CPU program)\n";
}

}  // namespace

void add_info_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("info", "version, CPU, threads and libraries");
  command->footer("Example:\n  pupil info --json");
  auto as_json = std::make_shared<bool>(false);
  command->add_flag("--json", *as_json, "for machines");
  command->callback([as_json] { info(*as_json); });
}

}  // namespace pupil
