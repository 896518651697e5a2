import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Iterator;

/**
 * What a program with the JDK's HttpClient does: as it is by default, it offers an upgrade to HTTP/2.
 * It prints a line for each step.
 *
 * <p>usage: java JavaHttpClient.java BASE_URL UPLOAD REDIRECT_TARGET ODD_TARGET...
 * (TOKEN: what the upstream itself asks for)
 */
class JavaHttpClient {
    static final HttpClient CLIENT = HttpClient.newHttpClient();
    static final String TOKEN = System.getenv("TOKEN");
    static final String JSON = "application/json";
    static final String FORM = "application/x-www-form-urlencoded";
    static final String BOUNDARY = "boundary-of-java";

    static String base;

    public static void main(String[] arguments) throws Exception {
        base = arguments[0];
        show("get", request("/api/blogposts/@sitehome?pageIndex=1&pageSize=2"));
        head();
        String json = "{\"Content\":\"\u4f60\u597d, \u535a\u5ba2\u56ed\",\"Number\":1}";
        show("post-json", request("/echo/json?raw", "POST", JSON, text(json)));
        String form = "title=%E4%BD%A0%E5%A5%BD+%26+more&tags=a+b%2Bc&empty=";
        show("post-form", request("/echo/form?raw", "POST", FORM, text(form)));
        upload(Path.of(arguments[1]));
        show("patch", request("/echo/patch?raw", "PATCH", JSON, text("{\"Content\":\"patched\"}")));
        show("delete", request("/echo/delete?raw", "DELETE", JSON, text("{\"Ids\":[1,2]}")));
        show("download", request("/bytes/67108864"));
        HttpClient follower = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NORMAL).build();
        show("redirect", follower.send(request(arguments[2]), BodyHandlers.ofInputStream()));
        events();
        for (String target : Arrays.copyOfRange(arguments, 3, arguments.length)) {
            System.out.println("odd " + CLIENT.send(request(target), BodyHandlers.discarding()).statusCode());
        }
    }

    static void head() throws Exception {
        HttpRequest request = builder("/bytes/123456").method("HEAD", BodyPublishers.noBody()).build();
        HttpResponse<Void> response = CLIENT.send(request, BodyHandlers.discarding());
        String length = response.headers().firstValue("Content-Length").orElse("-");
        System.out.println("head " + response.statusCode() + " " + contentType(response) + " " + length);
    }

    /** The JDK knows no multipart bodies; this makes one as programs do. */
    static void upload(Path file) throws Exception {
        String part = "--" + BOUNDARY + "\r\nContent-Disposition: form-data; name=";
        BodyPublisher parts = BodyPublishers.concat(
                text(part + "\"title\"\r\n\r\n\u4f60\u597d\r\n"),
                text(part + "\"file\"; filename=\"upload.bin\"\r\n\r\n"),
                BodyPublishers.ofFile(file),
                text("\r\n--" + BOUNDARY + "--\r\n"));
        String type = "multipart/form-data; boundary=" + BOUNDARY;
        HttpRequest request = request("/echo/upload", "POST", type, parts);
        System.out.println("upload " + CLIENT.send(request, BodyHandlers.discarding()).statusCode());
    }

    /** The upstream sends the next event only when it has heard that this one was seen. */
    static void events() throws Exception {
        StringBuilder seen = new StringBuilder("events");
        Iterator<String> lines = CLIENT.send(request("/lockstep"), BodyHandlers.ofLines()).body().iterator();
        while (lines.hasNext()) {
            String line = lines.next();
            if (line.startsWith("data: ")) {
                seen.append(' ').append(line.substring(6));
                CLIENT.send(request("/echo/seen/" + line.substring(6)), BodyHandlers.discarding());
            }
        }
        System.out.println(seen);
    }

    static void show(String name, HttpRequest request) throws Exception {
        show(name, CLIENT.send(request, BodyHandlers.ofInputStream()));
    }

    static void show(String name, HttpResponse<InputStream> response) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        try (InputStream body = response.body()) {
            byte[] piece = new byte[65536];
            for (int length = body.read(piece); length >= 0; length = body.read(piece)) {
                digest.update(piece, 0, length);
            }
        }
        String hash = HexFormat.of().formatHex(digest.digest());
        System.out.println(name + " " + response.statusCode() + " " + contentType(response) + " " + hash);
    }

    static String contentType(HttpResponse<?> response) {
        return response.headers().firstValue("Content-Type").orElse("-");
    }

    static HttpRequest request(String target) {
        return builder(target).build();
    }

    static HttpRequest request(String target, String method, String type, BodyPublisher body) {
        return builder(target).header("Content-Type", type).method(method, body).build();
    }

    static HttpRequest.Builder builder(String target) {
        HttpRequest.Builder builder = HttpRequest.newBuilder(URI.create(base + target));
        return TOKEN == null ? builder : builder.header("Authorization", "Bearer " + TOKEN);
    }

    static BodyPublisher text(String text) {
        return BodyPublishers.ofString(text, StandardCharsets.UTF_8);
    }
}
