// pupil report: what finished and running runs have reached, as a table and as curves in HTML.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_report_command(CLI::App&);
}
