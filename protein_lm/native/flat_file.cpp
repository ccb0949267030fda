// UniProtKB's flat files -> what fasta.cpp makes of FASTA, in one pass over the text.
//
// It takes ordinary texts: where an entry is at fault or needs thought (as in FASTA; or a line of more than 64 residues), the
// whole text is left to io/flat_file.py, which this is tested against.

#include "reading.h"

namespace {

using namespace reading;

constexpr int64_t KEY = 5;            // bytes of a line before what it says
constexpr int64_t MOST_BLANK = 64;    // empty lines before an entry, as in flat_file.py
constexpr int64_t MOST_LETTERS = 64;  // of a line

bool has_control(Span text) {
    bool found = false;
    for (const Byte* place = text.start; place < text.end; ++place) found |= *place < ' ';
    return found;
}

// Of a word in small letters.
bool begins_in_any_case(Span text, const char* word) {
    for (; *word; ++word, ++text.start)
        if (text.start == text.end || (*text.start | ' ') != Byte(*word)) return false;
    return true;
}

struct Entry : Facts {
    // From the ID line to behind the SQ line, where `place` is then; false: it is not ordinary, or lacks one of its lines.
    bool read(const Byte*& place, const Byte* end) {
        bool has_taxon = false;
        Span line = next_line(place, end);
        if (!line.begins("ID   ") || !is_ascii(line) || has_control(line)) return false;
        read_status(line);
        while (place < end) {
            line = next_line(place, end);
            switch (*line.start) {
            case 'A':
                if (line.begins("AC   ") && !id.start && !read_accession(line)) return false;
                break;
            case 'D':
                if (!line.begins("DE   ")) break;
                if (!is_ascii(line)) return false;
                if (says_fragment({line.start + KEY, line.end})) flags |= FRAGMENT;
                break;
            case 'I':
                if (line.begins("ID   ")) return false;
                break;
            case 'O':
                if (line.begins("OS   ") && !is_ascii(line)) return false;
                has_taxon = has_taxon || read_taxon(line);
                break;
            case 'P':
                if (!protein_existence && line.begins("PE   ") && line.end - line.start > KEY + 1 && line.start[KEY + 1] == ':')
                    if (const Byte level = line.start[KEY]; level >= '1' && level <= '5') protein_existence = level - '0';
                break;
            case 'S':
                if (line.begins("SQ   ")) return id.start != nullptr;
                break;
            case '/':
                if (line.is("//")) return false;
            }
        }
        return false;
    }

private:
    static Span next_line(const Byte*& place, const Byte* end) {  // all lines end in line feeds
        const Span line{place, find(place, end, '\n')};
        place = line.end + 1;
        return line;
    }

    // Of the third word.
    void read_status(Span line) {
        const Byte* place = line.start;
        for (int word = 0; word < 2; ++word) {
            while (place < line.end && *place != ' ') ++place;
            while (place < line.end && *place == ' ') ++place;
        }
        const Byte* stop = find(place, line.end, ' ');
        const Span word{place, stop ? stop : line.end};
        if (word.is("Reviewed;") || word.is("STANDARD;")) flags |= REVIEWED;
        if (word.is("Unreviewed;") || word.is("PRELIMINARY;")) flags |= UNREVIEWED;
    }

    bool read_accession(Span line) {
        if (!is_ascii(line) || has_control(line)) return false;
        const Byte* stop = find(line.start, line.end, ';');
        id = {line.start + KEY, stop ? stop : line.end};
        while (id.start < id.end && *id.start == ' ') ++id.start;
        while (id.start < id.end && id.end[-1] == ' ') --id.end;
        return id.start < id.end;
    }

    // Up to ten digits; a number that is too large is none.
    bool read_taxon(Span line) {
        if (!line.begins("OX   NCBI_TaxID=")) return false;
        const Byte *const first = line.start + KEY + std::strlen("NCBI_TaxID="), *place = first;
        int64_t value = 0;
        for (; place < line.end && place < first + 10 && *place >= '0' && *place <= '9'; ++place)
            value = 10 * value + (*place - '0');
        if (value < int64_t{1} << 31) taxon_id = int32_t(value);
        return place > first;
    }

    // `Flags: ... Fragment` and one of `;. `, or `(FRAGMENT)` in any case; of one or several.
    static bool says_fragment(Span text) {
        const bool has_flags = text.begins("Flags:");
        for (const Byte* place = text.start; place < text.end; ++place) {
            const bool is_bracket = *place == '(';
            if (!is_bracket && !(has_flags && *place == 'F')) continue;
            Span word{place + is_bracket, text.end};
            if (!is_bracket ? !word.begins("Fragment") : !begins_in_any_case(word, "fragment")) continue;
            word.start += std::strlen("Fragment");
            if (word.start < word.end && (*word.start == 's' || (is_bracket && *word.start == 'S'))) ++word.start;
            if (word.start == word.end) continue;
            if (is_bracket ? *word.start == ')' : *word.start == ';' || *word.start == '.' || *word.start == ' ') return true;
        }
        return false;
    }
};

// Copies the letters of a line, without the blanks between groups of them; returns their number, -1: too many.
int64_t gather(Span line, Byte* to) {
    int64_t size = 0;
    for (const Byte *place = line.start, *stop; place < line.end; place = stop + 1) {
        stop = find(place, line.end, ' ');
        if (!stop) stop = line.end;
        if (size + (stop - place) > MOST_LETTERS) return -1;
        std::memcpy(to + size, place, stop - place);
        size += stop - place;
    }
    return size;
}

// The codes of residues, from behind the SQ line to behind the line `//`; false: there are none, or not only residues.
bool read_residues(const Codes& codes, Byte last, const Byte*& place, const Byte* end, Byte*& to, Byte& largest) {
    const Byte* begin = to;
    Byte letters[MOST_LETTERS];
    for (largest = 0; place < end && *place == ' ';) {
        const Span line{place, find(place, end, '\n')};
        const int64_t size = gather(line, letters);
        if (size < 0) return false;
        const Byte code = codes.write(letters, size, to);
        if (code > last) return false;
        largest = code > largest ? code : largest;
        to += size, place = line.end + 1;
    }
    if (!Span{place, end}.begins("//\n")) return false;
    place += std::strlen("//\n");
    return to > begin;
}

bool read_entry(const Codes& codes, Byte last, const Byte*& place, const Byte* end, Records& records) {
    const Byte* start = place;
    while (place < end && *place == '\n') ++place;
    if (place == end) return true;
    if (place - start > MOST_BLANK) return false;
    Entry entry;
    Byte *tokens = records.next_tokens(), largest;
    if (!entry.read(place, end) || !read_residues(codes, last, place, end, tokens, largest)) return false;
    records.add(entry, tokens, largest);
    return true;
}

}  // namespace

extern "C" int64_t protein_lm_read_flat_file(Call* call) { return read_texts(*call, read_entry); }
