# The markers of equations, "[aft 3]" in a comment, as rows of a C++ table: method, equation, file, line.
{
  comment = index($0, "//")
  rest = comment ? substr($0, comment) : ""
  while (match(rest, /\[[a-z][a-z0-9_]* [0-9]+[a-z]?\]/)) {
    split(substr(rest, RSTART + 1, RLENGTH - 2), word, " ")
    printf "{\"%s\", \"%s\", \"%s\", %d},\n", word[1], word[2], FILENAME, FNR
    rest = substr(rest, RSTART + RLENGTH)
  }
}
