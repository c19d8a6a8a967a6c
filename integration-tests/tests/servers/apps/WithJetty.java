import java.io.IOException;
import java.sql.*;
import javax.servlet.http.*;
import org.eclipse.jetty.server.*;
import org.eclipse.jetty.server.handler.AbstractHandler;

public class WithJetty extends AbstractHandler {
    public void handle(String target, Request base, HttpServletRequest request, HttpServletResponse response)
            throws IOException {
        String url = "jdbc:postgresql://127.0.0.1:5432/" + System.getenv("PGDATABASE");
        try (Connection database = DriverManager.getConnection(url, System.getenv("PGUSER"), null);
                ResultSet rows = database.createStatement().executeQuery("SELECT 'hel' || 'lo'")) {
            rows.next();
            response.getWriter().print(rows.getString(1));
            base.setHandled(true);
        } catch (SQLException error) {
            throw new IOException(error);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Server server = new Server(Integer.parseInt(System.getenv("PORT")));
        server.setHandler(new WithJetty());
        server.start();
        server.join();
    }
}
