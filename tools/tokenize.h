// pupil tokenize: text as the ids that CLIP's text tower reads.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_tokenize_command(CLI::App&);
}
