// pupil info: what this build and this machine are.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_info_command(CLI::App&);
}
