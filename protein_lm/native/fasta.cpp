// FASTA -> token ids, identifiers, fingerprints and what UniProt's headers say, in one pass over the text.
//
// It takes ordinary texts: where a record is at fault or needs thought (lower case, gaps, stops, blanks among residues,
// bytes beyond ASCII), the whole text is left to io/fasta.py, which this is tested against.

#include "reading.h"

namespace {

using namespace reading;

struct Header : Facts {
    Span line;

    explicit Header(Span text) : line(text) {}

    // False: it has no identifier, or is not ASCII.
    bool read() {
        Span word{line.start, line.end};
        while (word.start < line.end && is_blank(*word.start)) ++word.start;
        if (!is_ascii(line) || word.start == line.end) return false;
        for (word.end = word.start; word.end < line.end && !is_blank(*word.end);) ++word.end;
        id = word;
        bool is_knowledgebase = false;
        if (word.begins("sp|") || word.begins("tr|")) {
            const Span rest{word.start + 3, word.end};
            const Byte* bar = find(rest.start, rest.end, '|');
            const Span accession{rest.start, bar ? bar : rest.end};
            if ((is_knowledgebase = accession.start < accession.end)) id = accession;
        }
        const Byte* name_end = line.end;
        if (is_knowledgebase) {
            flags = *word.start == 's' ? REVIEWED : UNREVIEWED;
            read_knowledgebase(name_end);
        } else if (is_cluster(word)) {
            read_cluster(name_end);
        }
        Span name{line.start, name_end};
        while (name.end > name.start && is_blank(name.end[-1])) --name.end;
        if (name.ends("(Fragment)") || name.ends("(Fragments)")) flags |= FRAGMENT;
        return true;
    }

private:
    static bool is_cluster(Span word) {
        for (const char* name : {"UniRef50_", "UniRef90_", "UniRef100_"})
            if (word.begins(name) && word.end - word.start > int64_t(std::strlen(name))) return true;
        return false;
    }

    // Where ` KEY` before an equals sign begins, at its blank; null: it does not stand there.
    const Byte* key(const Byte* equals, const char* name) const {
        const int64_t length = std::strlen(name);
        const Byte* start = equals - length - 1;
        return start >= line.start && is_blank(*start) && !std::memcmp(start + 1, name, length) ? start : nullptr;
    }

    // A number below 2^31 of up to ten digits, up to a blank or the end.
    bool number(const Byte* equals, int64_t& value) const {
        const Byte* place = equals + 1;
        value = 0;
        for (; place < line.end && place - equals <= 10 && *place >= '0' && *place <= '9'; ++place)
            value = 10 * value + (*place - '0');
        const bool is_whole = place == line.end || is_blank(*place);
        return place > equals + 1 && is_whole && value < int64_t{1} << 31;
    }

    void read_knowledgebase(const Byte*& name_end) {
        int64_t value;
        bool has_organism = false;
        for (const Byte* place = line.start; (place = find(place, line.end, '=')); ++place) {
            if (key(place, "OX")) {
                if (number(place, value)) taxon_id = value;
            } else if (key(place, "PE")) {
                if (number(place, value)) protein_existence = value;
            } else if (const Byte* start = key(place, "OS"); start && !has_organism) {
                name_end = start, has_organism = true;
            }
        }
    }

    void read_cluster(const Byte*& name_end) {
        int64_t value;
        for (const Byte* place = line.start; (place = find(place, line.end, '=')); ++place) {
            if (key(place, "TaxID")) {
                if (number(place, value)) taxon_id = value;
            } else if (const Byte* start = key(place, "n"); start && number(place, value)) {
                cluster_size = value, name_end = start;
            }
        }
    }
};

// The residues of one record, from the line behind its heading on; false: there are none, or not only residues. `last` is the
// largest code of a residue, `width` that of the line before, which most lines share.
bool read_residues(const Codes& codes, Byte last, const Byte* end, int64_t& width, const Byte*& place, Byte*& to, Byte& largest) {
    const Byte* begin = to;
    largest = 0;
    while (place < end && *place != '>') {
        if (width < end - place && place[width] == '\n') {
            const Byte code = codes.write(place, width, to);
            if (code <= last) {  // no line feed among them
                largest = code > largest ? code : largest;
                to += width, place += width + 1;
                continue;
            }
        }
        const int64_t length = find(place, end, '\n') - place;
        const Byte code = codes.write(place, length, to);
        if (code > last) return false;
        largest = code > largest ? code : largest;
        to += length, place += length + 1;
        if (place < end && *place != '>') width = length;
    }
    return to > begin;
}

bool read_record(const Codes& codes, Byte last, const Byte*& place, const Byte* end, int64_t& width, Records& records) {
    if (*place != '>') return false;
    const Byte* line_end = find(place, end, '\n');
    Header header({place + 1, line_end});
    Byte *tokens = records.next_tokens(), largest;
    place = line_end + 1;
    if (!header.read() || !read_residues(codes, last, end, width, place, tokens, largest)) return false;
    records.add(header, tokens, largest);
    return true;
}

}  // namespace

extern "C" int64_t protein_lm_read_fasta(Call* call) {
    int64_t width = 60;
    return read_texts(*call, [&](const Codes& codes, Byte last, const Byte*& place, const Byte* end, Records& records) {
        return read_record(codes, last, place, end, width, records);
    });
}
