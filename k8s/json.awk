# JSON documents, one a line, as `PATH VALUE` lines: {"a":[{"b":"x y"}]} gives `a.0.b x y`.
# For scripts that have kubectl alone: a field's place is its name, so one that is new or has
# moved changes nothing. What is no JSON gives a line `! REST` and nothing after it.
# POSIX awk: mawk, gawk and busybox.
function token() { return "^[ \t\r]*(\"([^\"\\\\]|\\\\.)*\"|[-+.0-9eE]+|true|false|null|[][{}:,])" }
function value(v) { print name[depth] " " v }
function step() { # the next element's name in the array or object that is open
    if (open[depth] == "[") name[depth] = name[depth - 1] (depth > 1 ? "." : "") at[depth]++
}
{
    rest = $0; text = ""; depth = 0; name[0] = ""; wants = "value"
    for (;;) {
        # In pieces: each token is cut off the front, which would copy a long line too often.
        while (rest != "" && (length(text) < 64 || !match(text, token()))) {
            text = text substr(rest, 1, 4096)
            rest = substr(rest, 4097)
        }
        if (!match(text, token())) break
        t = substr(text, 1, RLENGTH)
        # A number may go on in the next piece.
        if (RLENGTH == length(text) && rest != "") {
            text = text substr(rest, 1, 4096); rest = substr(rest, 4097)
            continue
        }
        text = substr(text, RLENGTH + 1)
        sub(/^[ \t\r]+/, "", t)
        c = substr(t, 1, 1)
        if (c == "{" || c == "[") {
            step(); open[++depth] = c; at[depth] = 0; wants = c == "{" ? "key" : "value"
            name[depth] = name[depth - 1]
        } else if (c == "}" || c == "]") {
            depth--; wants = ""
        } else if (c == ",") {
            wants = open[depth] == "{" ? "key" : "value"
        } else if (c == ":") {
            wants = "value"
        } else if (c == "\"" ) {
            t = substr(t, 2, length(t) - 2)
            gsub(/\\["\\\/]/, "'", t)
            if (wants == "key") name[depth] = name[depth - 1] (depth > 1 ? "." : "") t
            else { step(); value(t) }
        } else {
            step(); value(t)
        }
    }
    if (text rest != "" || depth != 0) print "! " text rest
}
